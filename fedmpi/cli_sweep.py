"""``fedmpi sweep``: several runs and their comparison."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmpi.errors import ConfigError, FedmpiError, Stopped

if TYPE_CHECKING:
    from fedmpi import sweep as work

STOPPED = 75
"""Exit code of a run that wants to be continued."""
LAUNCHED = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


def _seeds(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Return the numbers of a list such as 0,1,2."""
    words = value.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise click.BadParameter(f"{value!r}: give whole numbers, as in 0,1,2")
    seeds = tuple(int(word) for word in words)
    if len(set(seeds)) < len(seeds):
        raise click.BadParameter(f"{value!r}: a seed is given twice")
    return seeds


@click.command("sweep")
@click.argument("configs", nargs=-1, required=True, metavar="CONFIG...")
@click.option(
    "--seeds",
    callback=_seeds,
    default="0",
    metavar="LIST",
    show_default=True,
    help="Seeds of every configuration: 0,1,2.",
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key of every run.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of all runs.")
@click.option(
    "--launcher",
    default="",
    metavar="COMMAND",
    help="What starts the ranks of a run: 'mpirun -n 9'. Default: one process.",
)
@click.option("--task", type=click.IntRange(min=0), help="Do one run alone, counted from 0 (for a job array).")
@click.option("--baseline", metavar="NAME", help="Show differences to the runs of this configuration.")
@click.option("--dry-run", is_flag=True, help="Print the commands of the runs that are still to be done.")
def sweep(
    configs: tuple[str, ...],
    seeds: tuple[int, ...],
    changes: tuple[str, ...],
    out: Path,
    launcher: str,
    task: int | None,
    baseline: str | None,
    dry_run: bool,  # noqa: FBT001  (a flag of the command line)
) -> None:
    """Train every CONFIG with every seed, and compare what came out.

    A run goes to OUT/<name of the configuration>-s<seed>, its output to a .log beside it. Finished runs are skipped and
    unfinished ones resumed, so the same command continues a sweep. If a run fails, the others go on.
    The table is that of analysis/compare.py where it can be used, with figures in OUT/compare, else a short one.
    """
    from fedmpi import sweep as work  # noqa: PLC0415  (pydantic would double the time of --help)

    if any(name in os.environ for name in LAUNCHED):
        raise ConfigError(
            "fedmpi sweep starts the ranks of its runs itself: call it without mpirun, and use --launcher"
        )
    jobs = work.plan(configs, seeds, changes, out)
    labels = list(dict.fromkeys(job.label for job in jobs))
    if baseline is not None and baseline not in labels:
        raise ConfigError(f"--baseline {baseline}: is not in this sweep; there are {', '.join(labels)}")
    if task is not None and task >= len(jobs):
        raise ConfigError(f"--task {task}: this sweep has {len(jobs)} runs, 0 to {len(jobs) - 1}")
    chosen = jobs if task is None else [jobs[task]]
    if dry_run:
        todo = [job for job in chosen if job.summary() is None]
        click.echo("\n".join(shlex.join(job.command(shlex.split(launcher))) for job in todo))
        return
    failed = _run_all(chosen, shlex.split(launcher))
    if task is None:
        _report(jobs, out, baseline)
    if failed:
        raise FedmpiError(f"{len(failed)} of {len(chosen)} runs failed: {', '.join(failed)}")


def _run_all(jobs: Sequence["work.Job"], launcher: Sequence[str]) -> list[str]:
    """Do what is left to do; return the names of the runs that failed."""
    from fedmpi import sweep as work  # noqa: PLC0415

    failed = []
    for number, job in enumerate(jobs, 1):
        where = f"[{number}/{len(jobs)}] {job.name}"
        if job.summary() is not None:
            click.echo(f"{where}: finished before")
            continue
        click.echo(f"{where}: running")
        code = work.execute(job, launcher)
        if code == STOPPED:
            raise Stopped(f"{job.name} was stopped; the same command goes on with it")
        if code or job.summary() is None:
            failed.append(job.name)
            click.echo(f"{where}: failed with exit code {code}; see {job.name}.log")
    return failed


def _report(jobs: Sequence["work.Job"], out: Path, baseline: str | None) -> None:
    from fedmpi import sweep as work  # noqa: PLC0415

    finished = [(job, summary) for job in jobs if (summary := job.summary()) is not None]
    if not finished:
        return
    compared = work.compare([job for job, _ in finished], out / "compare", baseline)
    if compared is not None:
        click.echo(compared, nl=False)
        return
    done: dict[str, list[dict[str, object]]] = {}
    for job, summary in finished:
        done.setdefault(job.label, []).append(summary)
    click.echo(work.table(done))
