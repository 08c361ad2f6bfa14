"""Messages that MPI writes to a GPU's memory: whether the library can, as it says itself and as a trial shows."""

import ctypes
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from mpi4py import MPI

from fedmpi.comm.parcels import DeviceRoom, as_bytes
from fedmpi.comm.ranks import Ranks
from fedmpi.errors import DeviceError

TRIED = 1000
"""Values of the trial."""


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


def plan_arrival(ranks: Ranks, device: torch.device, *, wanted: bool) -> DeviceRoom | None:
    """Return what makes room for a model on this rank's GPU, None where it has to pass the host's memory.

    It goes there if the library says that it can and this rank hosts one client: the models of several would all
    have to fit. *Not collective.*

    Raises
    ------
    DeviceError
        The library says that it can, and cannot.
    """
    if not wanted or device.type != "cuda" or len(ranks.hosted) != 1 or not takes_device_memory():
        return None
    if not arrives(device):
        raise DeviceError(
            f"the MPI library says that it takes GPU memory, but a message to {device} of rank {ranks.rank} did not "
            "arrive there; set compute.direct=false"
        )
    return partial(vector, device)


def vector(device: torch.device, size: int) -> torch.Tensor:
    """Return a vector on ``device``, ``float32[size]``, that no work of the device still uses. *Not collective.*"""
    made = torch.empty(size, dtype=torch.float32, device=device)
    _settle(device)
    return made


def arrives(device: torch.device) -> bool:
    """Send this process a message from the host's memory to the device's, and see what comes. *Not collective.*"""
    sent = np.arange(1, TRIED + 1, dtype=np.float32)
    there = torch.zeros(TRIED, dtype=torch.float32, device=device)  # new memory may hold what an earlier trial sent
    _settle(device)
    try:
        request = MPI.COMM_SELF.Irecv([as_bytes(there), MPI.BYTE], 0)
        MPI.COMM_SELF.Send([as_bytes(sent), MPI.BYTE], 0)
        request.Wait()
    except MPI.Exception:
        return False
    return there.cpu().numpy().tobytes() == sent.tobytes()


def _settle(device: torch.device) -> None:
    """Wait for the device.

    Torch hands out memory whose last user may still be under way, to work that queues up behind it. MPI does not queue
    up.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
