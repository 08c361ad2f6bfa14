"""State of clients to the server and back, as bytes, for checkpoints; it is not counted as traffic of the method."""

from collections.abc import Mapping

import numpy as np
from mpi4py import MPI

from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.waiting import Patience

MAX_BYTES = 1 << 30
"""Longest state of one client that is accepted."""


def gather_blobs(ranks: Ranks, blobs: Mapping[int, bytes], patience: Patience) -> dict[int, bytes] | None:
    """*Collective*. Return the bytes of every client on the server, None elsewhere.

    ``blobs`` holds those of the hosted clients; lengths may differ and be 0.
    """
    if not ranks.is_server:
        for client in ranks.hosted:
            _send(ranks, SERVER, client, blobs[client], patience)
        return None
    return {c: blobs[c] if host == SERVER else _receive(ranks, host, c, patience) for c, host in enumerate(ranks.hosts)}


def scatter_blobs(ranks: Ranks, blobs: Mapping[int, bytes] | None, patience: Patience) -> dict[int, bytes]:
    """*Collective*. Return the bytes of the hosted clients.

    ``blobs`` holds those of all clients on the server, None elsewhere.
    """
    if blobs is None:
        return {c: _receive(ranks, SERVER, c, patience) for c in ranks.hosted}
    for client, host in enumerate(ranks.hosts):
        if host != SERVER:
            _send(ranks, host, client, blobs[client], patience)
    return {c: blobs[c] for c in ranks.hosted}


def same_number(ranks: Ranks, number: int, patience: Patience) -> int:
    """*Collective*. Return the largest ``number`` that a rank gave, the same on all: who wants something is heard."""
    largest = np.zeros(1, np.int64)
    request = ranks.control.Iallreduce(np.array([number], np.int64), largest, MPI.MAX)
    patience.wait(request, "the wishes of all ranks")
    return int(largest[0])


def same_text(ranks: Ranks, text: str | None, patience: Patience) -> str:
    """*Collective*. Return the server's ``text`` on every rank; the others give None."""
    data = np.frombuffer((text or "").encode(), np.uint8)
    length = same_number(ranks, data.size, patience)
    received = np.resize(data, length) if ranks.is_server else np.empty(length, np.uint8)
    if length:
        patience.wait(ranks.control.Ibcast([received, MPI.BYTE], SERVER), "the server's text")
    return received.tobytes().decode()


def _send(ranks: Ranks, dest: int, client: int, blob: bytes, patience: Patience) -> None:
    patience.wait(ranks.control.Isend([blob, MPI.BYTE], dest), f"rank {dest} to take the state of client {client}")


def _receive(ranks: Ranks, source: int, client: int, patience: Patience) -> bytes:
    what = f"the state of client {client} from rank {source}"
    return patience.receive_bytes(ranks.control, source, MAX_BYTES, what).tobytes()
