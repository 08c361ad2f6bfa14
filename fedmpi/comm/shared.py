"""One vector in memory that all ranks of a host share: the server writes it once, every client takes its own values.

For many clients on one host this is the cheapest broadcast with local masking: nobody copies what it does not keep, and
packing is done by the clients, side by side. The memory is a whole vector more than messages need.
"""

import os
from pathlib import Path

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.errors import LaunchError

MEMORY = Path("/dev/shm")  # noqa: S108 - where MPI libraries make shared memory on Linux
AUTO_LEAST = 1.0
"""Sum of densities from which ``auto`` shares: writing the vector once then costs less than packing for everyone."""


class SharedVector:
    """``float32[N]`` in a window of shared memory. *Collective* to construct and to free.

    Attributes
    ----------
    array
        The vector; only the server writes it.
    least
        Sum of the addressed clients' densities from which a delivery goes this way.
    """

    def __init__(self, ranks: Ranks, size: int, least: float = 0.0) -> None:
        self._window = MPI.Win.Allocate_shared(4 * size if ranks.is_server else 0, 4, comm=ranks.comm)
        memory, _ = self._window.Shared_query(SERVER)
        self.array: NDArray[np.float32] = np.array(memory, copy=False).view(np.float32)
        self.least = least
        self._window.Lock_all()

    def sync(self) -> None:
        """Make what this rank wrote visible to others, and theirs to it, around a message. *Not collective.*"""
        self._window.Sync()

    def free(self) -> None:
        """*Collective*. Give the memory back; ``array`` must not be used any more."""
        self._window.Unlock_all()
        del self.array
        self._window.Free()


def plan_downlink(ranks: Ranks, size: int, choice: str) -> SharedVector | None:
    """*Collective*. Return the memory for ``comm.downlink``, or None where values travel as messages.

    ``auto`` shares when all ranks are on one host that has the memory, and lets small deliveries be messages.

    Raises
    ------
    LaunchError
        On every rank, when ``choice`` is ``shared`` and that cannot be.
    """
    if choice == "messages" or ranks.size == 1:
        return None
    obstacle = _obstacle(ranks, size)
    if obstacle and choice == "shared":
        raise LaunchError(f"comm.downlink is shared, but {obstacle}; set it to messages or auto")
    return None if obstacle else SharedVector(ranks, size, 0.0 if choice == "shared" else AUTO_LEAST)


def _obstacle(ranks: Ranks, size: int) -> str:
    """*Collective*. Return why the ranks cannot share a vector, the same on all; an empty text if they can."""
    host = ranks.control.Split_type(MPI.COMM_TYPE_SHARED)
    facts = np.array([host.size == ranks.size, _free() >= 2 * 4 * size], np.int64)
    host.Free()
    least = np.empty_like(facts)
    ranks.control.Allreduce(facts, least, MPI.MIN)
    if not least[0]:
        return "the ranks are on several hosts"
    return "" if least[1] else f"{MEMORY} has no room for twice {4 * size / 1e6:.0f} MB"


def _free() -> float:
    """Return the bytes that are free for shared memory; infinite where nobody can tell."""
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize
