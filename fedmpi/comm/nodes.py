"""Which clients a node merges, and the arithmetic of merging by nodes: see :mod:`fedmpi.comm.hierarchical`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedmpi.comm.ranks import SERVER
from fedmpi.comm.segments import Cuts, Range, cut
from fedmpi.comm.sharing import union
from fedmpi.comm.task import Values
from fedmpi.sparse import Mask
from fedmpi.sparse.kernels import merge_range, pack


def leaders(hosts: Sequence[int], nodes: Sequence[int]) -> tuple[int, ...]:
    """Return for each client the rank that merges its values first: its node's lowest one with clients, or the server.

    To the server go the clients of its own node, and who is alone on one. ``hosts`` are the ranks of the clients,
    ``nodes`` the nodes of the ranks, named by any numbers. *Not collective.*
    """
    members: dict[int, list[int]] = {}
    for host in hosts:
        members.setdefault(nodes[host], []).append(host)
    direct = {node for node, theirs in members.items() if len(theirs) == 1} | {nodes[SERVER]}
    return tuple(SERVER if nodes[host] in direct else min(members[nodes[host]]) for host in hosts)


@dataclass(frozen=True)
class Group:
    """The clients of a node whose values come, and what its leader makes of them; the same on both ends.

    Attributes
    ----------
    merged, weights
        Those that count, and their weights, ``float32[merged]``, none of them 0.
    masks
        Of all, in client order.
    """

    merged: Sequence[int]
    weights: Values
    masks: Mapping[int, Mask]

    @cached_property
    def mask(self) -> Mask:
        """The entries that the leader sends: those that somebody keeps."""
        return union((self.masks[c] for c in self.merged), next(iter(self.masks.values())).size)

    @property
    def weight(self) -> float:
        """Of the group as one client."""
        return float(self.weights.sum(dtype=np.float64))

    def ranges(self, cuts: Cuts) -> tuple[Range, ...]:
        """Return the ranges in which they travel; none crosses the border of a client's part. *Not collective.*"""
        steps = [cuts.step(mask.count()) for mask in (self.mask, *self.masks.values())]
        return cut(0, cuts.size, min(steps))

    def mean(self, values: Mapping[int, Values], lo: int, hi: int, out: Values) -> None:
        """Write the mean of a range's values, pruned ones counted as 0, at the entries that are sent, to ``out``.

        That of a single client are its values, unrounded. *Not collective.*
        """
        if len(self.merged) == 1:
            out[:] = values[self.merged[0]]
            return
        parts, masks = [values[c] for c in self.merged], [self.masks[c] for c in self.merged]
        dense = np.empty(hi - lo, np.float32)
        merge_range(dense, parts, masks, self.weights, lo, hi, dense, skip_pruned=False)
        pack(dense, self.mask, lo, hi, out)


class HoldersShare:
    """The share of all weight that an entry's holders have: float32, exactly 1 where all do and 0 where none does."""

    def __init__(self, masks: Sequence[Mask], weights: Values) -> None:
        self._masks, self._weights = masks, weights
        self._ones = np.empty(0, np.float32)

    def of(self, lo: int, hi: int) -> Values:
        """Return it for a range. *Not collective.*"""
        if self._ones.size < hi - lo:
            self._ones = np.ones(hi - lo, np.float32)
        parts = [self._ones[: mask.count(lo, hi)] for mask in self._masks]
        share = np.empty(hi - lo, np.float32)
        return merge_range(share, parts, self._masks, self._weights, lo, hi, share, skip_pruned=False)
