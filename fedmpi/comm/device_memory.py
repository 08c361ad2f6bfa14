"""Whether the MPI library takes pointers to GPU memory: asked of the library that mpi4py has loaded, never guessed."""

import ctypes
from contextlib import suppress

from mpi4py import MPI


def takes_device_memory() -> bool | None:
    """Return what the library says of CUDA memory, None when it says nothing. *Not collective*; after MPI has started.

    MPI 4.1 has an info key for it. Before that Open MPI and MPICH have a function of their own, whose answer is about
    this process: a library built with CUDA says no where there is no GPU.
    """
    kinds = MPI.COMM_WORLD.Get_info().Get("mpi_memory_alloc_kinds")
    if kinds is not None:
        return any(kind.split(":")[0].strip() == "cuda" for kind in kinds.split(","))
    with suppress(OSError, AttributeError):  # no such library, no such function
        return bool(ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support())
    return None
