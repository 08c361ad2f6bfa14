"""A set of runs: several configurations times several seeds, each run once, and compared at the end."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fedmpi
from fedmpi.config import load_config
from fedmpi.errors import ConfigError
from fedmpi.run_folder import RunFolder


@dataclass(frozen=True)
class Job:
    """One run of a sweep: a configuration with one seed, and the folder that it goes to."""

    label: str
    config: str
    seed: int
    changes: tuple[str, ...]
    folder: Path
    digest: str

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def overrides(self) -> tuple[str, ...]:
        """The changes, with the seed."""
        return (*self.changes, f"run.seed={self.seed}")

    def command(self, launcher: Sequence[str]) -> list[str]:
        """Return the command line that begins the run, or goes on with what there is of it."""
        sets = [word for change in self.overrides for word in ("--set", change)]
        train = [sys.executable, "-m", "fedmpi", "train", self.config, *sets]
        return [*launcher, *train, "--out", str(self.folder), "--resume", "auto", "--no-progress"]

    def summary(self) -> dict[str, object] | None:
        """Return the figures of the run if it is finished, else None; ``ConfigError`` if it is another run's."""
        file = RunFolder(self.folder).summary
        if not file.is_file():
            return None
        found: dict[str, object] = json.loads(file.read_text())
        if found.get("config_digest") != self.digest:
            message = f"{self.folder} holds a run with other settings than {self.config}; choose another --out"
            raise ConfigError(message)
        return found


def plan(configs: Sequence[str], seeds: Sequence[int], changes: Sequence[str], out: Path) -> list[Job]:
    """Return the runs of a sweep, all seeds of the first configuration first.

    Raises
    ------
    ConfigError
        For mistakes in any configuration, two configurations of one name, or a seed among ``changes``.
    """
    if any(change.replace(" ", "").startswith("run.seed=") for change in changes):
        raise ConfigError("--set run.seed: the seeds of a sweep are given by --seeds")
    jobs: list[Job] = []
    for config in configs:
        label = Path(config).name.removesuffix(".yaml")
        if any(job.label == label for job in jobs):
            raise ConfigError(f"{config}: another configuration of this sweep is called '{label}' as well")
        for seed in seeds:
            digest = load_config(config, [*changes, f"run.seed={seed}"]).digest()
            jobs.append(Job(label, config, seed, tuple(changes), out / f"{label}-s{seed}", digest))
    return jobs


def execute(job: Job, launcher: Sequence[str]) -> int:
    """Run one job to its end, its output in ``<folder>.log``; return the exit code."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with job.folder.with_name(f"{job.name}.log").open("a") as log:
        try:
            done = subprocess.run(  # noqa: S603  (our own program, without a shell)
                job.command(launcher), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
            )
        except OSError as error:
            raise ConfigError(f"--launcher {launcher[0]}: cannot be started: {error.strerror}") from error
    return done.returncode


def table(done: Mapping[str, Sequence[Mapping[str, object]]]) -> str:
    """Return a table of what the runs of every label reached: mean and, over seeds, sample standard deviation."""
    width = max(map(len, done), default=0)
    head = f"{'run':<{width}}  seeds      rank-1 (%)         mAP (%)     sent (MB)   saved (%)"
    return "\n".join([head, *(_line(label, width, runs) for label, runs in done.items())])


def _line(label: str, width: int, runs: Sequence[Mapping[str, object]]) -> str:
    sent = [(_number(run, "bytes_up") + _number(run, "bytes_down")) / 1e6 for run in runs]
    cells = [_spread([100 * _number(run, key) for run in runs]) for key in ("rank1_after", "map_after")]
    saved = statistics.fmean(100 * _number(run, "saved") for run in runs)
    scores = f"{cells[0]:>14}  {cells[1]:>14}"
    return f"{label:<{width}}  {len(runs):>5}  {scores}  {statistics.fmean(sent):>12.1f}  {saved:>10.1f}"


def _number(run: Mapping[str, object], key: str) -> float:
    value = run[key]
    return float(value) if isinstance(value, int | float) else float("nan")


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def compare(jobs: Sequence[Job], out: Path, baseline: str | None) -> str | None:
    """Run analysis/compare.py of the source tree over finished runs; return what it prints, None if it cannot be used.

    Its tables and figures go to ``out``. It needs the extra ``analysis`` and a source tree: an installed package has no
    analysis scripts.
    """
    script = Path(fedmpi.__file__).parents[1] / "analysis" / "compare.py"
    if not script.is_file():
        return None
    runs = [f"{job.label}={job.folder}" for job in jobs]
    chosen = ["--baseline", baseline] if baseline else []
    argv = [sys.executable, str(script), *runs, "--out", str(out), *chosen]
    done = subprocess.run(  # noqa: S603  (our own program, without a shell)
        argv,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    return done.stdout if done.returncode == 0 else None
