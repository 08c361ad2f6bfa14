"""Measurements to the server: one row of float64 per client, a fixed size known to all."""

from collections.abc import Mapping

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.traffic import Meter
from fedmpi.comm.waiting import Patience


def gather_rows(
    ranks: Ranks, rows: Mapping[int, NDArray[np.float64]], width: int, patience: Patience, meter: Meter
) -> NDArray[np.float64] | None:
    """*Collective*. Return ``float64[clients, width]`` on the server, None elsewhere.

    ``rows`` holds one ``float64[width]`` per hosted client. Counted as control traffic, not as the method's.
    """
    mine = np.array([rows[c] for c in ranks.hosted], np.float64).reshape(len(ranks.hosted), width)
    counts = [width * ranks.hosts.count(r) for r in range(ranks.size)]
    stacked = np.empty((len(ranks.hosts), width)) if ranks.is_server else None
    target = [stacked, (counts, None), MPI.DOUBLE] if stacked is not None else None
    patience.wait(ranks.control.Igatherv([mine, MPI.DOUBLE], target, SERVER), "measurements of all ranks")
    if stacked is None:
        return None
    meter.control += 8 * width * sum(1 for host in ranks.hosts if host != SERVER)
    result = np.empty_like(stacked)
    result[[c for r in range(ranks.size) for c in ranks.clients if ranks.hosts[c] == r]] = stacked
    return result
