"""Real MPI jobs for tests: started with a time limit, ended with everything below them, quoted when they go wrong."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
LAUNCHER_PREFIXES = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "HYDI_", "HYDRA_", "MPI_LOCAL", "SLURM_STEP")
OPEN_MPI_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
OPEN_MPI = {
    **OPEN_MPI_AS_ROOT,
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}


@dataclass(frozen=True)
class Job:
    """A finished job: exit code, what it wrote, wall seconds."""

    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"exit code {self.code} after {self.seconds:.1f} s\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    def lines(self) -> list[str]:
        """Return the lines of stderr that are ours, not the launcher's."""
        return [line for line in self.err.splitlines() if line.startswith("fedmpi: ")]


def find_mpirun() -> str | None:
    """Return the mpirun of this environment, else the first on the path."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


needs_mpirun = pytest.mark.skipif(find_mpirun() is None, reason="no mpirun here: pip install 'fedmpi[mpich]'")


@cache
def is_open_mpi() -> bool:
    """Return whether jobs are started by Open MPI's mpirun."""
    launcher = find_mpirun()
    if launcher is None:
        return False
    return "Open MPI" in subprocess.run([launcher, "--version"], capture_output=True, text=True, check=False).stdout


@cache
def environment() -> Mapping[str, str]:
    """Return the environment of jobs: no traces of another launcher, one thread, root and oversubscription allowed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIXES)}
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return kept | OPEN_MPI if is_open_mpi() else kept


def command(ranks: int | None, argv: Sequence[object]) -> list[str]:
    """Return ``python argv`` as a command line, under mpirun unless ``ranks`` is None."""
    launcher = [] if ranks is None else [str(find_mpirun()), "-n", str(ranks)]
    return [*launcher, sys.executable, *map(str, argv)]


class Running:
    """A job that was started; `wait` for it, or look at it while it runs."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> None:
        # Files, not pipes: a pipe that a surviving rank holds open would keep us waiting for its end.
        self._out, self._err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        self._start = time.monotonic()
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err, env={**environment(), **env}, cwd=cwd
        )

    def wait(self, timeout: float) -> Job:
        """Return the finished job; fail the test, with all that was written, when it hangs."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"hangs: not over within {timeout:g} s\n{self._job(-9)}")
        return self._job(code)

    def kill(self) -> None:
        """End the job and everything below it."""
        if self.process.poll() is None:
            family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
            for member in family:
                if member.is_running():
                    member.kill()
            self.process.wait()

    def _job(self, code: int) -> Job:
        seconds = time.monotonic() - self._start
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read())
        return Job(code, *texts, seconds)


@contextmanager
def started(
    ranks: int | None, argv: Sequence[object], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Running]:
    """Start a job; whatever happens, nothing of it is left afterwards."""
    job = Running(command(ranks, argv), env or {}, cwd)
    try:
        yield job
    finally:
        job.kill()


def wait_for(paths: Iterable[Path], timeout: float) -> None:
    """Return once all files are there; fail the test at the time limit."""
    end = time.monotonic() + timeout
    while missing := [path.name for path in paths if not path.exists()]:
        if time.monotonic() > end:
            pytest.fail(f"after {timeout:g} s there is no {', '.join(missing)}")
        time.sleep(0.02)


def run(
    ranks: int | None,
    argv: Sequence[object],
    *,
    timeout: float = 240.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Job:
    """Run ``python argv`` on so many ranks (None = without mpirun) to its end."""
    with started(ranks, argv, env=env, cwd=cwd) as job:
        return job.wait(timeout)


def succeed(ranks: int | None, argv: Sequence[object], **options: object) -> Job:
    """Run a job that must end with code 0."""
    job = run(ranks, argv, **options)  # type: ignore[arg-type]
    assert job.code == 0, str(job)
    return job
