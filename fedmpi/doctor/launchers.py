"""Launchers: which mpirun is there, whether it belongs to the MPI that mpi4py loads, and whether it works."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmpi.doctor.findings import Part

TRIAL_SECONDS = 60.0
VERSION_SECONDS = 20.0
# Only rank 0 of a world speaks: one world of n says "<n>" once, n separate worlds say "<1>" n times.
PROBE = (
    "import sys; from mpi4py import MPI; c = MPI.COMM_WORLD; c.Barrier()\n"
    "if c.rank == 0: sys.stdout.write(f'<{c.size}>\\n')"
)
OPEN_MPI_ROOT = "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1, or work as an ordinary user"
OPEN_MPI_SLOTS = (
    "export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe (Open MPI 4: OMPI_MCA_rmaps_base_oversubscribe=1), "
    "or start fewer ranks"
)
KNOWN_TROUBLE = {
    "run as root": OPEN_MPI_ROOT,
    "run prterun as root": OPEN_MPI_ROOT,
    "not enough slots": OPEN_MPI_SLOTS,
    "unsupported PMI version": "use the mpirun of the MPI that mpi4py loads",
}
"""Texts of launchers, and what to do about them."""


@dataclass(frozen=True)
class Launcher:
    """An mpirun: its path, the MPI that it belongs to, and its version (empty where it does not tell)."""

    path: Path
    family: str
    version: str

    def __str__(self) -> str:
        """Return family and version."""
        return f"{self.family} {self.version}".strip()


def family(text: str) -> str:
    """Return which MPI speaks in a version text: ``Open MPI``, ``Intel MPI``, ``MVAPICH``, ``MPICH`` or ``unknown``."""
    for name, words in {
        "Open MPI": ("open mpi", "openrte", "prrte"),
        "Intel MPI": ("intel(r) mpi",),
        "MVAPICH": ("mvapich",),
        "MPICH": ("mpich", "hydra"),
    }.items():
        if any(word in text.lower() for word in words):
            return name
    return "unknown"


def fits(launcher: str, library: str) -> bool:
    """Return whether a launcher's family can start a library's ranks; unknown ones get the benefit of the doubt.

    MPICH, Intel MPI and MVAPICH speak PMI and start each other's ranks; Open MPI speaks PMIx.
    """
    return "unknown" in (launcher, library) or (launcher == "Open MPI") == (library == "Open MPI")


def find_launchers() -> list[Launcher]:
    """Return the mpirun beside this Python, then the one on PATH, where they exist and differ."""
    beside, on_path = Path(sys.executable).parent / "mpirun", shutil.which("mpirun")
    paths = [beside] if beside.is_file() else []
    if on_path and not any(path.samefile(on_path) for path in paths):
        paths.append(Path(on_path))
    return [describe(path) for path in paths]


def describe(path: Path) -> Launcher:
    """Return what a launcher says about itself."""
    try:
        answer = subprocess.run(  # noqa: S603 - a launcher of the user's own
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return Launcher(path, "unknown", "")
    number = re.search(r"\d+\.\d+[\w.]*", answer.stdout)
    return Launcher(path, family(answer.stdout), number[0] if number else "")


def examine(library: str, ranks: int, environment: Mapping[str, str] | None) -> tuple[Part, Path | None]:
    """Look at the launchers, and try the one that fits with ``ranks`` ranks.

    Parameters
    ----------
    library
        Version text of the MPI that mpi4py loads; empty when there is none.
    ranks
        How many ranks to try.
    environment
        The environment of the trial; None = no trial (this process was itself started by a launcher).

    Returns
    -------
    The part, and the launcher to use, None if there is none.
    """
    part, found = Part("launcher"), find_launchers()
    for launcher in found:
        name = "mpirun" if "mpirun" not in part.facts else "mpirun_on_PATH"
        part.facts[name] = f"{launcher.path} ({launcher})"
    part.facts["srun"] = shutil.which("srun")
    fitting = [launcher for launcher in found if fits(launcher.family, family(library))]
    if not library:
        return part, None
    if not fitting:
        _none_fits(part, found, family(library))
        return part, None
    if len(fitting) < len(found):
        other = next(launcher for launcher in found if launcher not in fitting)
        part.warning(
            f"{other.path} is {other.family}'s, but mpi4py loads {family(library)}",
            f"start with {fitting[0].path}",
        )
    if environment is not None:
        part.facts["trial"] = trial(fitting[0].path, ranks, environment, part)
    return part, fitting[0].path


def _none_fits(part: Part, found: list[Launcher], library: str) -> None:
    if found:
        part.error(
            f"{found[0].path} is {found[0].family}'s, but mpi4py loads {library}: every rank would be on its own",
            f"use {library}'s mpirun, or install for mpi4py the MPI that the launcher belongs to",
        )
    elif not shutil.which("srun"):
        part.warning(
            "there is no mpirun: one process can do all the work (fedmpi train), but not several",
            "install the extra: pip install 'fedmpi[mpich]', or load your cluster's MPI module",
        )


def trial(mpirun: Path, ranks: int, environment: Mapping[str, str], part: Part) -> str:
    """Start ``ranks`` small processes and see whether they are one world; return what happened."""
    command = [str(mpirun), "-n", str(ranks), sys.executable, "-P", "-c", PROBE]
    process = subprocess.Popen(  # noqa: S603 - as above
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(environment),
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        part.error(f"{mpirun} -n {ranks} did not end within {TRIAL_SECONDS:g} s", "ask those who installed this MPI")
        return "no end"
    return _judge(f"{mpirun} -n {ranks}", process.returncode, output, errors, ranks, part)


def _judge(command: str, code: int, output: str, errors: str, ranks: int, part: Part) -> str:
    worlds = [int(size) for size in re.findall(r"<(\d+)>", output)]
    if code == 0 and worlds == [ranks]:
        return f"{ranks} ranks in one world"
    if code == 0 and len(worlds) > 1:
        part.error(
            f"{command} started {len(worlds)} separate worlds, not one: it belongs to another MPI than mpi4py loads",
            "use the mpirun of that MPI",
        )
        return f"{len(worlds)} separate worlds"
    said = [line.strip() for line in errors.splitlines() if line.strip(" -=*\t")]
    advice = next((do for text, do in KNOWN_TROUBLE.items() if text in errors), "run it by hand to see all it says")
    part.error(f"{command} fails with code {code}: {said[0] if said else 'it says nothing'}", advice)
    return "failed"
