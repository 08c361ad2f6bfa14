"""What the cost model rests on, measured once, at the start: the slowest link, and the coder of values."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from fedmpi.comm.coding import Wire
from fedmpi.comm.ranks import SERVER, Ranks, host_names
from fedmpi.comm.waiting import Patience
from fedmpi.sparse import ValueCoding, decode_values, encode_values

PROBE_BYTES = 1 << 18
TURNS = 3


def plan_wire(ranks: Ranks, values: str, prefer: str, bandwidth: float | None, patience: Patience) -> Wire:
    """*Collective*. Return how values travel, the same on every rank; measure only what the choice needs.

    ``bandwidth`` is in bytes a second, None to measure it. Memory counts as infinitely fast: a single rank hands
    nothing to MPI, and ranks on the server's host share its memory, which a loaded machine makes look slow at times.
    """
    names = host_names(ranks.control)
    remote = [rank for rank, name in enumerate(names) if name != names[SERVER]]
    if values != "auto" or prefer == "bytes" or ranks.size == 1 or not (remote or bandwidth):
        return Wire(values, prefer)
    measured = np.zeros(3)
    slowest = bandwidth or slowest_link(ranks, remote, patience)
    if ranks.is_server:
        measured[:] = slowest, *coder_speed()
    ranks.control.Bcast(measured, SERVER)
    return Wire(values, prefer, *map(float, measured))


def coder_speed() -> tuple[float, float]:
    """Return raw bytes a second of lossless encoding and decoding, the best of a few turns. *Not collective.*"""
    rng = np.random.default_rng(0)
    old = (0.02 * rng.standard_normal(PROBE_BYTES // 4)).astype(np.float32)
    new = (old + 0.001 * rng.standard_normal(old.size)).astype(np.float32)
    data = encode_values(new, ValueCoding.LOSSLESS_DELTA, old)
    encode = _best(lambda: encode_values(new, ValueCoding.LOSSLESS_DELTA, old))
    decode = _best(lambda: decode_values(data, ValueCoding.LOSSLESS_DELTA, old.size, old))
    return new.nbytes / encode, new.nbytes / decode


def slowest_link(ranks: Ranks, others: Sequence[int], patience: Patience) -> float:
    """*Collective*. Send a quarter of a megabyte to each of ``others`` and back a few times.

    Returns bytes a second on the server, 0 elsewhere.
    """
    buffer = np.zeros(PROBE_BYTES, np.uint8)

    def echo(rank: int) -> None:
        patience.wait(ranks.control.Isend([buffer, MPI.BYTE], rank), f"rank {rank} to take a probe")
        patience.wait(ranks.control.Irecv([buffer, MPI.BYTE], rank), f"the echo of rank {rank}")

    if ranks.is_server:
        return min(2 * PROBE_BYTES / _best(lambda r=rank: echo(r)) for rank in others)  # type: ignore[misc]
    for _ in range(TURNS if ranks.rank in others else 0):
        patience.wait(ranks.control.Irecv([buffer, MPI.BYTE], SERVER), "a probe of the server")
        patience.wait(ranks.control.Isend([buffer, MPI.BYTE], SERVER), "the server to take the echo")
    return 0.0


def _best(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TURNS):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return max(min(seconds), 1e-9)
