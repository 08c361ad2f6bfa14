"""The server's work on arrived ranges: check, merge into the global vector."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm.traffic import Meter
from fedmpi.sparse import Checksum, Flag, Head, Mask, check_values, values_checksum
from fedmpi.sparse.kernels import merge_range


class Merge:
    """One round's weighted mean, range by range in ascending order.

    Parameters
    ----------
    masks, heads
        Of every client that sends.
    weights
        Of every client that takes part; the values of others are checked and dropped.
    theta
        ``float32[N]``, overwritten.
    skip_pruned
        SAS, as in :func:`fedmpi.sparse.kernels.merge_range`.
    """

    def __init__(
        self,
        masks: Mapping[int, Mask],
        heads: Mapping[int, Head],
        weights: Mapping[int, float],
        theta: NDArray[np.float32],
        meter: Meter,
        *,
        skip_pruned: bool,
    ) -> None:
        self._masks, self._heads, self._theta, self._meter = masks, heads, theta, meter
        self._merged = sorted(weights)
        self._shares = np.array([weights[c] for c in self._merged], np.float32)
        self._skip_pruned = skip_pruned
        self._sums = {c: Checksum() for c, head in heads.items() if not head.flags & Flag.SHARED}
        self._counts = dict.fromkeys(heads, 0)

    def add(self, lo: int, hi: int, parts: Mapping[int, NDArray[np.float32]]) -> None:
        """Merge the next range of all clients' values. *Not collective.*"""
        with self._meter.time("decode"):
            for client, before in self._sums.items():
                values = parts[client]
                self._sums[client] = before.combine(values_checksum(values, self._counts[client]))
                self._counts[client] += values.size
        with self._meter.time("merge"):
            old = self._theta[lo:hi]
            merge_range(
                old,
                [parts[c] for c in self._merged],
                [self._masks[c] for c in self._merged],
                self._shares,
                lo,
                hi,
                old,
                skip_pruned=self._skip_pruned,
            )

    def check(self) -> None:
        """Raise ``WireError`` when a client's values do not have the checksum that its head announced."""
        for client, found in self._sums.items():
            head = self._heads[client]
            check_values(found, head.values_checksum, head.nnz, f"the update of client {client}")
