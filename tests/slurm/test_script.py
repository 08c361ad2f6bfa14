"""`fedmpi job`: text as a pure function; compared whole with the scripts of jobs/, which no test rewrites."""

import shlex
import signal
import subprocess

import pytest
from click.testing import CliRunner

from fedmpi.cli import cli
from fedmpi.config import load_config
from fedmpi.errors import ConfigError
from fedmpi.slurm import JobOptions, option_names, options, script
from tests import mpi

RUN = "fedklpr --set data.root=benchmarks --set model.weights=resnet50.pth --ranks 9"
ABLATIONS = [f"--vary {part}.enabled=false" for part in ("pruning", "crr", "kll", "klaw", "praw", "sas")]
JOBS = {
    "train_9ranks": "",
    "train_multinode": "--nodes 2",
    "ablation_array": f"--seeds 0,1,2 {' '.join(ABLATIONS)}",
    "preemptible": "--partition preemptible --notice 300",
    "apptainer": "--container fedmpi.sif",
}


def printed(text: str) -> str:
    done = CliRunner().invoke(cli, ["job", *shlex.split(text)], standalone_mode=False, catch_exceptions=False)
    return done.output


def text(*overrides: str, named: str | None = None, **given: object) -> str:
    return script(load_config(named, overrides), named, overrides, options(given))


def sbatch_lines(printed: str) -> dict[str, str]:
    found = [line.removeprefix("#SBATCH --").split("#")[0].strip() for line in printed.splitlines()]
    whole = [line for line, raw in zip(found, printed.splitlines(), strict=True) if raw.startswith("#SBATCH ")]
    return dict(line.partition("=")[::2] for line in whole)


@pytest.mark.parametrize("name", JOBS)
def test_the_scripts_of_jobs_are_what_is_printed(name):
    expected = (mpi.ROOT / f"jobs/{name}.sbatch").read_text()
    assert printed(f"{RUN} --name {name} {JOBS[name]}") == expected


@pytest.mark.parametrize("path", sorted((mpi.ROOT / "jobs").glob("*.s*")), ids=lambda path: path.name)
def test_bash_can_read_the_scripts(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_other_scripts():
    found = {path.name for path in (mpi.ROOT / "jobs").iterdir()}
    assert found == {f"{name}.sbatch" for name in JOBS} | {"train_then_report.sh", "fedmpi.def"}


class TestResources:
    def test_a_run_on_the_embedded_people(self):
        lines = sbatch_lines(text())
        assert (lines["ntasks"], lines["ntasks-per-node"], lines["gpus-per-node"]) == ("9", "9", "8")
        assert lines["cpus-per-task"] == "1"

    def test_clients_cores_and_devices_come_from_the_configuration(self):
        lines = sbatch_lines(
            text("data.clients=[prid,ilids]", "compute.device=cpu", "compute.threads=3", "data.workers=2")
        )
        assert (lines["ntasks"], lines["cpus-per-task"]) == ("3", "5")
        assert "gpus-per-node" not in lines
        assert sbatch_lines(text("data.root=x", "data.split=4"))["ntasks"] == "5"

    @pytest.mark.parametrize(("nodes", "ranks", "per_node", "gpus"), [
        (1, 9, 9, 8), (2, 9, 5, 4), (3, 9, 3, 3), (4, 9, 3, 3), (9, 9, 1, 1), (2, 2, 1, 1), (1, 1, 1, 1),
    ])  # fmt: skip
    def test_a_gpu_for_every_client(self, nodes, ranks, per_node, gpus):
        """Fill nodes one after the other, and count the clients of each."""
        lines = sbatch_lines(text(nodes=nodes, ranks=ranks))
        assert int(lines["ntasks-per-node"]) == per_node
        members = [range(n * per_node, min(ranks, (n + 1) * per_node)) for n in range(nodes)]
        most = max(sum(1 for rank in node if rank > 0) for node in members)
        assert int(lines["gpus-per-node"]) == max(1, most) == gpus

    def test_only_what_was_asked_for(self):
        lines = sbatch_lines(text(account="a", partition="p", qos="q", constraint="c&d", memory="64G", restarts=0))
        assert [lines[k] for k in ("account", "partition", "qos", "constraint", "mem")] == ["a", "p", "q", "c&d", "64G"]
        assert "requeue" not in lines
        assert "scontrol requeue" not in text(restarts=0)


class TestQuoting:
    SAYS = 'printf "%s\\n" "$@"'

    def words(self, tmp_path, printed: str) -> list[str]:
        """Return the command line that a script starts: run by bash, with a stub in the place of everything."""
        for name in ("srun", "scontrol", "squeue", "fedmpi"):
            path = tmp_path / name
            path.write_text(f"#!/bin/bash\n[ {name} = srun ] || exit 1\n{self.SAYS}\n")
            path.chmod(0o755)
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NAME": "n", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "3"}
        env |= {"SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_ARRAY_TASK_ID": "1"}
        env |= {"SLURM_ARRAY_JOB_ID": "6"}
        done = subprocess.run(
            ["bash"], input=printed, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[1:-1]

    def test_values_arrive_as_they_were_given(self, tmp_path):
        hostile = ['data.root=/a b/$HOME/`id`/"q"/it\'s', "data.clients=[x, y]", "model.weights=a;b&c"]
        found = self.words(tmp_path, text(*hostile, setup=("true",), ranks=3, name="n"))
        expected = [word for value in hostile for word in ("--set", value)]
        assert found == ["--mpi=pmi2", "fedmpi", "train", *expected, "--out", "runs/n-7", "--resume", "auto"]

    def test_variants_of_an_array(self, tmp_path):
        vary = "data.root=/a b/c's"
        found = self.words(tmp_path, text(setup=("true",), vary=(vary,)))
        assert found[3:] == ["--set", vary, "--out", "runs/n-6/data.root=_a b_c's", "--resume", "auto"]

    def test_a_configuration_with_blanks_in_its_name(self, tmp_path):
        path = tmp_path / "my run.yaml"
        path.write_text("{}\n")
        found = self.words(tmp_path, script(load_config(path), str(path), (), options({"setup": ("true",)})))
        assert found[3] == str(path)


@pytest.mark.parametrize(("given", "said"), [
    ({"setup": ("source missing/bin/activate",)}, "no fedmpi on "),
    ({"container": "my image.sif"}, "no my image.sif in "),
])  # fmt: skip
def test_an_environment_that_is_not_there_is_one_line(tmp_path, given, said):
    done = subprocess.run(
        ["bash"], input=text(**given), env={"PATH": "/usr/bin:/bin", "HOSTNAME": "n1"}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout.startswith(said)
    assert done.stdout.endswith(": look at EDIT 2\n")


class TestReturnToTheQueue:
    """The whole script in bash, with stubs for SLURM and for what it starts."""

    SRUN = """\
case "$*" in *--mpi=none*) exit 0;; esac
trap 'kill $! 2> /dev/null; exit CODE' USR1
[ -n "$LEAVES" ] && exit CODE
touch started
sleep 600 &
wait $!
"""

    SCONTROL = """\
[ "$1" = show ] && echo "JobId=7 JobName=n STATE StartTime=2026-11-23T03:56:06"
[ "$1" = show ] || echo "$@" > requeued
"""
    RUNNING = "JobState=RUNNING Reason=None PreemptTime=None"

    def run(self, folder, code: int, *, signalled: bool, starts: int = 0, state: str = RUNNING) -> bool:
        """Return whether the job was put back after its run ended with ``code``, signalled before or not."""
        scontrol = self.SCONTROL.replace("STATE", state)
        stubs = {"srun": self.SRUN.replace("CODE", str(code)), "scontrol": scontrol, "squeue": "exit 1"}
        stubs["fedmpi"] = ""
        for name, body in stubs.items():
            path = folder / name
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        env = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_NAME": "n", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "3"}
        env |= {"SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_RESTART_COUNT": str(starts)}
        env |= {"LEAVES": "" if signalled else "1"}
        job = folder / "job.sh"
        job.write_text(text(setup=("true",), ranks=3, name="n", restarts=2))
        with subprocess.Popen(["bash", job], env=env, cwd=folder, stdout=subprocess.PIPE) as process:
            if signalled:
                mpi.wait_for([folder / "started"], 60)
                process.send_signal(signal.SIGUSR1)
            assert process.wait(60) == code
        return (folder / "requeued").exists() and (folder / "requeued").read_text() == "requeue 7\n"

    @pytest.mark.parametrize(("code", "signalled", "back"), [
        (75, False, True), (75, True, True),
        (137, True, True), (1, True, True),  # stopped, and too slow for it: killed
        (137, False, False), (1, False, False), (2, False, False), (0, True, False), (0, False, False),
    ])  # fmt: skip
    def test_what_was_stopped_goes_on_and_what_failed_does_not(self, tmp_path, code, signalled, back):
        assert self.run(tmp_path, code, signalled=signalled) == back

    @pytest.mark.parametrize(("state", "back"), [
        ("JobState=COMPLETING Reason=None Requeue=1 PreemptTime=None", False),  # scancel
        ("JobState=CANCELLED Reason=None Requeue=1 PreemptTime=None", False),
        ("JobState=COMPLETING Reason=TimeLimit Requeue=1 PreemptTime=None", True),
        ("JobState=COMPLETING Reason=None Requeue=1 PreemptTime=2026-11-23T03:56:32", True),  # and not requeued
        ("JobState=COMPLETING Reason=None Requeue=1", True),  # requeued already: asks in vain
    ])  # fmt: skip
    def test_what_was_cancelled_stays_so(self, tmp_path, state, back):
        assert self.run(tmp_path, 75, signalled=True, state=state) == back

    @pytest.mark.parametrize("code", [75, 137])
    def test_not_for_ever(self, tmp_path, code):
        assert self.run(tmp_path, code, signalled=True, starts=1)
        (tmp_path / "requeued").unlink()
        (tmp_path / "started").unlink()
        assert not self.run(tmp_path, code, signalled=True, starts=2)


class TestMistakes:
    def test_an_unknown_option_lists_the_valid_ones(self):
        with pytest.raises(ConfigError, match=f"unknown option 'nodez' of a job; valid: {', '.join(option_names())}"):
            options({"nodez": 2})
        done = CliRunner().invoke(cli, ["job", "--nodez", "2"])
        assert done.exit_code == 2
        for name in (*option_names(), "set"):
            assert f"--{name}" in done.output

    @pytest.mark.parametrize(("given", "message"), [
        ({"time": "soon"}, "--time must be minutes"),
        ({"time": "8:00"}, "--time must be minutes"),
        ({"time": "10", "notice": 600}, "--notice 600: --time 10 is over before"),
        ({"time": "1-00:00:05", "notice": 86405}, "--notice 86405: --time 1-00:00:05 is over before"),
        ({"launcher": "mpiexec"}, "--launcher must be one of srun-pmi2, srun-pmix, mpirun, got 'mpiexec'"),
        ({"nodes": 0}, "--nodes must be at least 1, got 0"),
        ({"partition": "a b"}, "--partition must be one word"),
        ({"name": "a\n#SBATCH --uid=0"}, "--name must be one word"),
        ({"seeds": (1, 1)}, "--seeds must be different"),
        ({"setup": ("a\nb",)}, "--setup must be one line"),
    ])  # fmt: skip
    def test_values_that_cannot_be(self, given, message):
        with pytest.raises(ConfigError, match=message):
            options(given)

    @pytest.mark.parametrize("given", [{"time": "11"}, {"time": "0:10:01"}, {"time": "1-00:00:00"}])
    def test_a_notice_within_the_time(self, given):
        assert options({"notice": 600, **given}).notice == 600

    def test_a_variant_that_no_run_can_be(self):
        done = CliRunner().invoke(cli, ["job", "--vary", "federation.rounds=2", "--vary", "federation.roundz=3"])
        assert isinstance(done.exception, ConfigError)
        assert str(done.exception).startswith("--vary federation.roundz=3: unknown key; did you mean 'rounds'?")

    def test_ranks(self):
        with pytest.raises(ConfigError, match=r"how many clients data\.root holds is not known here: give --ranks"):
            text("data.root=x")
        with pytest.raises(ConfigError, match="--ranks 12 for 8 clients: 3 would idle"):
            text(ranks=12)
        with pytest.raises(ConfigError, match="--nodes 4 for 3 ranks: a node would be empty"):
            text(ranks=3, nodes=4)


def test_every_option_is_described():
    assert all(JobOptions.__dataclass_fields__[name].metadata["help"].endswith(".") for name in option_names())
