"""Which implementation computes: the compiled extension where it was built, torch elsewhere; NumPy is the reference.

All give the same bits. ``FEDMPI_KERNELS=native``, ``torch`` or ``numpy`` forces one.
"""

import os
from contextlib import suppress
from functools import cache
from importlib import import_module
from types import ModuleType

from fedmpi.errors import ConfigError
from fedmpi.sparse import kernels_portable

__all__ = ["NAMES", "active", "implementation", "implementations"]

NAMES = ("native", "torch", "numpy")
"""Fastest first."""


def active() -> str:
    """Return what is in use: ``native (avx512)``, ``native (avx2)``, ``native (scalar)``, ``torch`` or ``numpy``."""
    module = implementation()
    if module is kernels_portable:
        return "numpy"
    return f"native ({module.level()})" if hasattr(module, "level") else "torch"


@cache
def implementation() -> ModuleType:
    """Return the module that computes: chosen once, on first use.

    Raises
    ------
    ConfigError
        ``FEDMPI_KERNELS`` is unknown, or demands an extension that was not built.
    """
    wanted = os.environ.get("FEDMPI_KERNELS", "")
    if wanted not in ("", *NAMES):
        raise ConfigError(f"FEDMPI_KERNELS={wanted!r} is unknown: unset it, or use native, torch or numpy")
    if wanted in ("torch", "numpy"):
        return _portable(wanted)
    try:
        return _compiled()
    except ImportError as error:
        if wanted == "native":
            raise ConfigError(f"FEDMPI_KERNELS=native, but the extension is not built here: {error}") from error
        return _portable("torch")


def implementations() -> dict[str, ModuleType]:
    """Return all that this machine has, whatever is in use: ``native`` where it was built, ``torch`` and ``numpy``."""
    found = {"torch": _portable("torch"), "numpy": _portable("numpy")}
    with suppress(ImportError):
        found = {"native": _compiled(), **found}
    return found


def _portable(name: str) -> ModuleType:
    """Return torch's kernels, loaded when they are wanted, or NumPy's."""
    return kernels_portable if name == "numpy" else import_module("fedmpi.sparse.kernels_torch")


def _compiled() -> ModuleType:
    """Return the extension; ImportError when it was not built, or built from older sources than these."""
    module = import_module("fedmpi.sparse._native")
    missing = [name for name in kernels_portable.__all__ if not hasattr(module, name)]
    if missing:
        raise ImportError(f"{module.__file__} is of an older version, without {missing[0]}: install fedmpi again")
    return module
