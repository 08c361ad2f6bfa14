"""Which implementation computes: the compiled extension where it was built, NumPy elsewhere.

Both give the same bits. ``FEDMPI_KERNELS=native`` or ``portable`` forces one.
"""

import os
from contextlib import suppress
from functools import cache
from importlib import import_module
from types import ModuleType

from fedmpi.errors import ConfigError
from fedmpi.sparse import kernels_portable

__all__ = ["active", "implementation", "implementations"]


def active() -> str:
    """Return what is in use: ``native (avx512)``, ``native (avx2)``, ``native (scalar)`` or ``portable``."""
    module = implementation()
    return "portable" if module is kernels_portable else f"native ({module.level()})"


@cache
def implementation() -> ModuleType:
    """Return the module that computes: chosen once, on first use.

    Raises
    ------
    ConfigError
        ``FEDMPI_KERNELS`` is unknown, or demands an extension that was not built.
    """
    wanted = os.environ.get("FEDMPI_KERNELS", "")
    if wanted not in ("", "native", "portable"):
        raise ConfigError(f"FEDMPI_KERNELS={wanted!r} is unknown: unset it, or use native or portable")
    if wanted == "portable":
        return kernels_portable
    try:
        return _compiled()
    except ImportError as error:
        if wanted == "native":
            raise ConfigError(f"FEDMPI_KERNELS=native, but the extension is not built here: {error}") from error
        return kernels_portable


def implementations() -> dict[str, ModuleType]:
    """Return all that this machine has, whatever is in use: ``native`` where it was built, and ``portable``."""
    found = {"portable": kernels_portable}
    with suppress(ImportError):
        found = {"native": _compiled(), **found}
    return found


def _compiled() -> ModuleType:
    """Return the extension; ImportError when it was not built, or built from older sources than these."""
    module = import_module("fedmpi.sparse._native")
    missing = [name for name in kernels_portable.__all__ if not hasattr(module, name)]
    if missing:
        raise ImportError(f"{module.__file__} is of an older version, without {missing[0]}: install fedmpi again")
    return module
