"""The server's work on arrived ranges: check, merge into the global vector."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm.traffic import Meter
from fedmpi.sparse import Checksum, Flag, Head, Mask, check_values, values_checksum
from fedmpi.sparse.kernels import merge_range

LEAST = 1 << 18
"""Entries of a vector for each thread that merges it: for fewer, starting the thread costs more than it saves."""
PIECES = 4
"""Ranges for each thread, so that they end at about the same time."""


def helpers(size: int, waiting: int) -> int:
    """Return how many threads may merge ``size`` entries while so many ranks of this host wait. *Not collective.*

    No more than there are cores for this process: one where the launcher binds every rank to a core of its own.
    """
    found = getattr(os, "sched_getaffinity", None)  # not everywhere; then one thread
    cores = len(found(0)) if found else 1
    return max(1, min(cores, waiting, size // LEAST))


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
            self._merge(lo, hi, parts)

    def add_all(self, ranges: Sequence[tuple[int, int, Mapping[int, NDArray[np.float32]]]], threads: int) -> None:
        """Merge ranges (lo, hi, values of all clients) that have no checksums, several at a time. *Not collective.*

        No entry is in two ranges, so the bits are those of one thread.
        """
        with self._meter.time("merge"), ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda each: self._merge(*each), ranges))  # raises what a thread raised

    def _merge(self, lo: int, hi: int, parts: Mapping[int, NDArray[np.float32]]) -> None:
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
