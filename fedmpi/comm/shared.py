"""Memory that the ranks of a host share: nothing is sent that can be read where it lies.

Down, the server writes its vector once and every client takes its own values: the cheapest broadcast with local
masking, for nobody copies what it does not keep, and packing is done by the clients, side by side. Up, clients lay
their values down and the server merges them from there. The memory is a vector, or one for each client, more than
messages need.
"""

import os
from pathlib import Path

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.errors import LaunchError
from fedmpi.sparse import ValueCoding

MEMORY = Path("/dev/shm")  # noqa: S108 - where MPI libraries make shared memory on Linux
AUTO_LEAST = 1.0
"""Sum of densities from which ``auto`` shares: writing the vector once then costs less than packing for everyone."""


class SharedVector:
    """``float32[N]`` in a window of shared memory. *Collective* to construct and to free.

    Attributes
    ----------
    array
        The vector; only the server writes it, and not while clients take from it.
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


class SharedUpdates:
    """``float32[N]`` for every client on the server's host. *Collective* to construct and to free.

    Only a client's rank writes its vector, and only between two merges.
    """

    def __init__(self, ranks: Ranks, size: int) -> None:
        self._node = ranks.comm.Split_type(MPI.COMM_TYPE_SHARED, key=ranks.rank)
        local = MPI.Group.Translate_ranks(ranks.comm.group, list(range(ranks.size)), self._node.group)
        self._here = local[SERVER] != MPI.UNDEFINED
        own = 4 * size * len(ranks.hosted) if self._here else 0
        self._window = MPI.Win.Allocate_shared(own, 4, comm=self._node)  # type: ignore[arg-type]
        self._vectors: dict[int, NDArray[np.float32]] = {}
        for client, host in enumerate(ranks.hosts):
            if self._here and host != SERVER and local[host] != MPI.UNDEFINED:
                memory, _ = self._window.Shared_query(local[host])
                turn = ranks.hosts[:client].count(host)
                self._vectors[client] = np.array(memory, copy=False).view(np.float32)[turn * size : (turn + 1) * size]
        self._window.Lock_all()

    def takes(self, client: int, coding: ValueCoding) -> bool:
        """Return whether a client's values are laid down here; coded ones have fewer bytes and are sent."""
        return client in self._vectors and coding == ValueCoding.RAW_F32

    def room(self, client: int, count: int) -> NDArray[np.float32]:
        """Return where a hosted client's values will be read, ``float32[count]``: what is packed there lies already."""
        return self._vectors[client][:count]

    def lay(self, client: int, values: NDArray[np.float32]) -> None:
        """Lay a hosted client's values down, unless they lie there. *Not collective.*"""
        target = self.room(client, values.size)
        if target.ctypes.data != values.ctypes.data:
            np.copyto(target, values)
        self._window.Sync()

    def read(self, client: int, count: int) -> NDArray[np.float32]:
        """Return the values that a client has said to have laid down, float32[count], where they lie."""
        self._window.Sync()
        return self._vectors[client][:count]

    def free(self) -> None:
        """*Collective*. Give the memory back; what was read must not be used any more."""
        self._window.Unlock_all()
        self._vectors.clear()
        self._window.Free()
        self._node.Free()


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


def plan_uplink(ranks: Ranks, size: int, choice: str) -> SharedUpdates | None:
    """*Collective*. Return the memory for ``comm.uplink``, or None where all values travel as messages.

    ``auto`` shares when all ranks are on one host that has the memory.

    Raises
    ------
    LaunchError
        On every rank, when ``choice`` is ``shared`` and there is no room.
    """
    if choice not in {"shared", "auto"} or ranks.size == 1:
        return None
    obstacle = _obstacle(ranks, size * len(ranks.hosts), hosts_may_differ=choice == "shared")
    if obstacle and choice == "shared":
        raise LaunchError(f"comm.uplink is shared, but {obstacle}; set it to messages or auto")
    return None if obstacle else SharedUpdates(ranks, size)


def _obstacle(ranks: Ranks, size: int, *, hosts_may_differ: bool = False) -> str:
    """*Collective*. Return why the ranks cannot share a vector, the same on all; an empty text if they can."""
    host = ranks.control.Split_type(MPI.COMM_TYPE_SHARED)
    facts = np.array([host.size == ranks.size or hosts_may_differ, _free() >= 2 * 4 * size], np.int64)
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
