"""The text of a batch script: resources, environment, the command of the run, and how it survives being stopped."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedmpi.errors import ConfigError
from fedmpi.slurm.options import LAUNCHERS, JobOptions

if TYPE_CHECKING:
    from fedmpi.config import RunConfig

EMBEDDED_CLIENTS = 8
WIDTH = 36
"""Column at which the comments of #SBATCH lines begin."""


def script(config: RunConfig, named: str | None, overrides: Sequence[str], job: JobOptions) -> str:
    """Return an sbatch script for a run; a pure function of its arguments.

    Parameters
    ----------
    config
        The run, loaded.
    named, overrides
        How the run was named on the command line: its file or shipped name (None = the default), and ``--set``.
    job
        What the cluster must know.

    Raises
    ------
    ConfigError
        When the number of ranks cannot be known, or ranks would idle.
    """
    ranks = _ranks(config, job)
    name = job.name or config.run.name
    runs = _runs(job)
    blocks = [
        ["#!/usr/bin/env bash", *_head(config, name, ranks, job, runs), *_resources(config, name, ranks, job, runs)],
        _environment(job),
        [*_launch(job), *_even(ranks, job)],
        _command(named, overrides, job),
        _survival(job),
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _ranks(config: RunConfig, job: JobOptions) -> int:
    """Return the number of ranks, and check that it fits nodes and clients."""
    clients = _clients(config)
    if job.ranks is None and clients is None:
        message = "how many clients data.root holds is not known here: give --ranks (one per client and a server)"
        raise ConfigError(message)
    ranks = job.ranks or (clients or 0) + 1
    if clients is not None and ranks > clients + 1:
        raise ConfigError(f"--ranks {ranks} for {clients} clients: {ranks - clients - 1} would idle")
    if job.nodes > ranks:
        raise ConfigError(f"--nodes {job.nodes} for {ranks} ranks: a node would be empty")
    return ranks


def _clients(config: RunConfig) -> int | None:
    data = config.data
    if config.data.split is not None:
        return config.data.split
    return len(data.clients) or (EMBEDDED_CLIENTS if data.root is None else None)


def _runs(job: JobOptions) -> int:
    """Return the length of the job array, 0 for a single run."""
    return (1 + len(job.vary)) * max(1, len(job.seeds)) if job.vary or job.seeds else 0


def _head(config: RunConfig, name: str, ranks: int, job: JobOptions, runs: int) -> Iterator[str]:
    clients = ranks - 1 if ranks > 1 else 1
    where = "one node" if job.nodes == 1 else f"{job.nodes} nodes"
    what = f"{runs} runs of {name}, each" if runs else f"{name}:"
    yield f"# {what} {config.federation.rounds} rounds on {where}, a server and {clients} ranks with clients."
    yield "#"
    yield "# Look at the three lines below EDIT, then:  sbatch THIS_FILE"
    yield "# A run that is stopped - time limit, preemption, scancel --signal=USR1 --batch - goes on by itself where it"
    yield "# was. docs/clusters.md explains every line; `fedmpi job --help` prints scripts like this one."
    yield "#"


def _resources(config: RunConfig, name: str, ranks: int, job: JobOptions, runs: int) -> Iterator[str]:
    """Yield the #SBATCH lines, with what is left to the site as comments."""
    log = "%x-%A_%a.log" if runs else "%x-%j.log"
    yield _sbatch(f"job-name={name}")
    yield from _who_pays(job)
    yield _sbatch(f"time={job.time}", "long enough for some rounds; the whole run may take longer")
    yield _sbatch(f"nodes={job.nodes}")
    yield _sbatch(f"ntasks={ranks}", "a server and one rank per client, or fewer")
    yield _sbatch(f"ntasks-per-node={-(-ranks // job.nodes)}")
    yield _sbatch(f"cpus-per-task={_cores(config, job)}", "compute.threads + data.workers")
    gpus = _gpus(config, ranks, job)
    if gpus:
        yield _sbatch(f"gpus-per-node={gpus}", "one per client; the server needs none")
    if job.memory:
        yield _sbatch(f"mem={job.memory}")
    if runs:
        yield _sbatch(f"array=0-{runs - 1}", f"0-{runs - 1}%4 would run four at a time")
    yield _sbatch(f"output={log}")
    yield _sbatch("open-mode=append", "one log for all starts of a run")
    if job.restarts:
        yield _sbatch("requeue", "it may be started again under the same number")
    yield _sbatch(f"signal=B:USR1@{job.notice}", "seconds before the time limit")


def _who_pays(job: JobOptions) -> Iterator[str]:
    named = [option for option in ("account", "partition", "qos", "constraint") if getattr(job, option) is not None]
    if {"account", "partition"} & set(named):
        yield "# EDIT 1: account and partition, as your site names them"
    else:
        yield "# EDIT 1: account and partition, where your site wants them (take the first # away)"
        yield "##SBATCH --account=project --partition=gpu"
    for option in named:
        yield _sbatch(f"{option}={getattr(job, option)}")


def _sbatch(option: str, comment: str = "") -> str:
    line = f"#SBATCH --{option}"
    return f"{line:<{WIDTH}}# {comment}" if comment else line


def _cores(config: RunConfig, job: JobOptions) -> int:
    return job.cpus or config.compute.threads + config.data.workers


def _gpus(config: RunConfig, ranks: int, job: JobOptions) -> int:
    """Return the GPUs per node: one for each rank with clients, where most of them are."""
    if job.gpus is not None:
        return job.gpus
    if config.compute.device == "cpu":
        return 0
    full = -(-ranks // job.nodes)  # SLURM fills one node after the other; the server sits on the first
    return max(1, full - 1, min(full, ranks - full))


def _even(ranks: int, job: JobOptions) -> Iterator[str]:
    """Yield what spares uneven jobs a warning of srun."""
    if ranks % job.nodes:
        yield "unset SLURM_NTASKS_PER_NODE  # srun warns of it where nodes have different numbers of ranks"


def _environment(job: JobOptions) -> Iterator[str]:
    if job.container:
        yield f"image={shlex.quote(job.container)}  # EDIT 2: the image, built from jobs/fedmpi.def"
        yield '[ -e "$image" ] || { echo "no $image in $PWD: look at EDIT 2"; exit 2; }'
        return
    yield "# EDIT 2: what makes `fedmpi` available on the nodes, as `module load mpich` or an environment"
    yield from job.setup
    yield 'command -v fedmpi > /dev/null || { echo "no fedmpi on $HOSTNAME: look at EDIT 2"; exit 2; }'


def _launch(job: JobOptions) -> Iterator[str]:
    """Yield the launcher, and the others as comments."""
    yield "# What starts the ranks. The right one says 'ranks N' under `fedmpi doctor`; a wrong one ends with an error."
    for name, (command, whose) in LAUNCHERS.items():
        mark = "" if name == job.launcher else "# "
        yield f"{f'{mark}launch=({command})':<{WIDTH + 2}}# {whose}"
    yield 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not take it from sbatch by itself'
    yield "# Open MPI's mpirun would give every rank one core, whatever --cpus-per-task says (second name: Open MPI 4)."
    yield "export PRTE_MCA_hwloc_default_binding_policy=none OMPI_MCA_hwloc_base_binding_policy=none"


def _command(named: str | None, overrides: Sequence[str], job: JobOptions) -> Iterator[str]:
    program = ["apptainer", "exec", "--nv"] if job.container else []
    image = ['"$image"'] if job.container else []
    words = ["train", *([named] if named else [])]
    settings = [word for change in overrides for word in ("--set", change)]
    command = " ".join([*program, *image, "fedmpi", shlex.join([*words, *settings])])
    if not (job.vary or job.seeds):
        yield "# The folder keeps its name when the job starts again; `OUT=... sbatch` chooses another."
        yield "out=${OUT:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}"
        yield "# EDIT 3: the run: configuration, data, changes"
        yield f'run=({command} --out "$out" --resume auto)'
        return
    yield from _array(command, job)


def _array(command: str, job: JobOptions) -> Iterator[str]:
    """Yield what turns the number in the array into a run: variants by seeds."""
    yield "# Which run this is: every variant (the first changes nothing) with every seed."
    yield f"variants=({shlex.join(['', *job.vary])})"
    yield f"seeds=({shlex.join(map(str, job.seeds or ('',)))})"
    yield "variant=${variants[SLURM_ARRAY_TASK_ID / ${#seeds[@]}]}"
    yield "seed=${seeds[SLURM_ARRAY_TASK_ID % ${#seeds[@]}]}"
    yield "label=${variant:-unchanged}"
    yield r"out=${OUT:-runs/$SLURM_JOB_NAME-$SLURM_ARRAY_JOB_ID}/${label//\//_}${seed:+-seed$seed}"
    yield "# EDIT 3: the run: configuration, data, changes"
    yield f"run=({command})"
    yield '[ -z "$variant" ] || run+=(--set "$variant")'
    yield '[ -z "$seed" ] || run+=(--set "run.seed=$seed")'
    yield 'run+=(--out "$out" --resume auto)'


def _survival(job: JobOptions) -> Iterator[str]:
    """Yield start, forwarding of signals, and the return into the queue."""
    yield from _LIMIT
    if job.restarts:
        yield from _STEP
    yield from _START
    if job.restarts:
        yield from (line.replace("RESTARTS", str(job.restarts)) for line in _REQUEUE)
    yield 'exit "$code"'


_LIMIT = """\
# The last run of an array has the number of the whole array; under this name it is only itself.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
# fedmpi stops in time by itself when it knows the end; newer versions of SLURM tell it.
if [ -z "${SLURM_JOB_END_TIME:-}" ] && end=$(squeue -h -j "$job" -o %e); then
    export SLURM_JOB_END_TIME=$(date -d "$end" +%s 2> /dev/null)
fi
""".splitlines()
_STEP = """\
# MPICH names the memory of a node's ranks after job and step, and hangs on what a killed start left: so another step.
for ((i = 0; i < ${SLURM_RESTART_COUNT:-0}; i++)); do srun --mpi=none --nodes=1 --ntasks=1 true 2> /dev/null; done
""".splitlines()
_START = """\
# Signals to this script go on to the ranks, through srun or mpirun. A signal ends `wait` early: then wait again.
pid= stopped=
trap 'told=1 stopped=1; [ -z "$pid" ] || kill -USR1 "$pid" 2> /dev/null' USR1 TERM
echo "$(date -Is) start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST: ${launch[*]} ${run[*]}"
"${launch[@]}" "${run[@]}" &
pid=$!
while told=; wait "$pid"; code=$?; [ -n "$told" ]; do :; done
echo "$(date -Is) exit code $code"
""".splitlines()
_REQUEUE = """\
# 75: a checkpoint is written, and the rest is still to do. A run that was told to stop and ended in another way, too
# slow for the time it had, goes on after its last checkpoint. A failure of its own does not come back.
if { [ "$code" -eq 75 ] || { [ -n "$stopped" ] && [ "$code" -ne 0 ]; }; } &&
    [ "${SLURM_RESTART_COUNT:-0}" -lt RESTARTS ]; then
    case $(scontrol show job -o "$job") in
        *JobState=CANCELLED* | *JobState=COMPLETING\\ Reason=None*PreemptTime=None*)
            echo "cancelled, so not put back" ;;
        *) answer=$(scontrol requeue "$job" 2>&1) || case $answer in
            *pending*) ;;  # SLURM has done it, as after a preemption
            *) echo "$answer; not put back into the queue; submit again with OUT=$out" ;;
        esac ;;
    esac
fi
""".splitlines()
