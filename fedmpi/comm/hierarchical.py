"""The hierarchical uplink: every node merges its own clients first, and the server merges the nodes.

What leaves a node is one value for every entry that any of its clients keeps, instead of one from each that does. The
lowest rank with clients leads its node. Clients on the server's node, and who is alone on one, send to the server as
ever and enter its sum beside the nodes.

A leader computes S_n = sum_k w_k m_k x_k / W_n over its clients k, with W_n = sum_k w_k, in client order; the server
sum_n W_n S_n / sum_n W_n over nodes and lone clients, in the order of their first clients. Where pruned entries are
left out of the mean it divides that by the holders' share of the weight, sum_k w_k m_k / sum_k w_k, which it knows from
the masks; entries that nobody holds stay. In exact arithmetic that is the mean of the other plans, but the order of
summation is another one, and so are the last bits: with K clients the result is within (2 K + 2) eps of the exact mean
of the values that travelled, times sum w |x| / sum w over the entry's holders (eps = 2^-23, to first order in eps). The
bits depend on who is on which node, and on nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from mpi4py import MPI

from fedmpi.comm.delegated import Coming, Delegated, Moved, Orders
from fedmpi.comm.inbox import Contents, Inbox
from fedmpi.comm.nodes import Group, HoldersShare, leaders
from fedmpi.comm.ranks import SERVER
from fedmpi.comm.segments import cut
from fedmpi.comm.task import Surroundings, Task, Values
from fedmpi.comm.waiting import Patience
from fedmpi.sparse import Checksum, Mask, ValueCoding, check_values, values_checksum
from fedmpi.sparse.kernels import merge_range

LONGER = 8.0
"""Seconds that the server waits longer for a leader than this one for its clients: that one knows who is late."""


@dataclass(frozen=True)
class Addend:
    """One term of the server's sum, a client's values or a node's; weight 0 = checked and not merged."""

    first: int
    coming: Coming
    weight: float


@dataclass(frozen=True)
class Answer:
    """What a node's leader sends: for its group, the checksums of what it got, and the mean."""

    rank: int
    group: Group
    pairs: "np.ndarray[tuple[int, int], np.dtype[np.uint64]]"
    told: MPI.Request
    coming: Coming


class Hierarchical(Delegated):
    """The plan; ``nodes`` names the node of every rank. *Not collective* to construct."""

    def __init__(self, around: Surroundings, nodes: Sequence[int]) -> None:
        self._leaders = leaders(around.ranks.hosts, nodes)
        super().__init__(around, (0, around.cuts.size), sorted({*self._leaders} - {SERVER}))

    def _targets(self, client: int) -> Iterator[tuple[int, int, int]]:
        """Yield the leader of the client's node, or the server."""
        yield self._leaders[client], 0, self._around.cuts.size

    def _work(self, task: Task, orders: Orders, sends: list[MPI.Request]) -> None:
        if task.theta is not None:
            self._finish(task, orders, task.theta, sends)
        elif self._members(orders, self._around.ranks.rank):
            self._lead(task, orders, sends)

    def _members(self, orders: Orders, rank: int) -> list[int]:
        """Return the clients whose values go to a rank."""
        return [c for c in orders.sending if self._leaders[c] == rank]

    def _group(self, orders: Orders, leader: int, masks: Mapping[int, Mask]) -> Group:
        members, weights = self._members(orders, leader), orders.weights.astype(np.float32)
        merged = [c for c in orders.merged if c in members and weights[c]]
        return Group(merged, weights[merged], {c: masks[c] for c in members})

    def _lead(self, task: Task, orders: Orders, sends: list[MPI.Request]) -> None:
        """Merge the node's clients range by range, and send what comes out, and the checksums, to the server."""
        comm, meter = self._around.ranks.comm, self._around.meter
        coming = {c: self._open(task, c) for c in self._members(orders, comm.rank)}
        group = self._group(orders, comm.rank, {c: one.mask for c, one in coming.items()})
        merged, at = np.empty(group.mask.count(), np.float32), 0
        for lo, hi in group.ranges(self._around.cuts):
            part = merged[at : at + group.mask.count(lo, hi)]
            values = {c: one.take(lo, hi) for c, one in coming.items()}
            with meter.time("decode"):
                for c, one in coming.items():
                    one.note(values[c])
            if part.size:
                with meter.time("merge"):
                    group.mean(values, lo, hi, part)
                sends.append(comm.Isend(part, SERVER, self._answer_tag))
            at += part.size
        pairs = [*(one.sum for one in coming.values()), values_checksum(merged)]
        sends.append(comm.Isend(np.array(pairs, np.uint64), SERVER, self._sums_tag))

    def _finish(self, task: Task, orders: Orders, theta: Values, sends: list[MPI.Request]) -> None:
        """Merge nodes and lone clients into ``theta``; compare all checksums with what the heads announced."""
        direct = {c: self._open(task, c) for c in self._members(orders, SERVER)}
        answers = [self._answer(task, orders, rank) for rank in self._told if self._members(orders, rank)]
        sends += [answer.told for answer in answers]
        weights = np.maximum(orders.weights, 0).astype(np.float32)
        addends = [Addend(c, one, float(weights[c])) for c, one in direct.items()]
        addends += [Addend(min(a.group.masks), a.coming, a.group.weight) for a in answers]
        addends.sort(key=lambda addend: addend.first)
        share = self._share(task, orders)
        for lo, hi in cut(0, theta.size, min((a.coming.step for a in addends), default=64)):
            self._add(addends, orders, share, lo, hi, theta[lo:hi])
        found = {c: one.sum for c, one in direct.items()}
        for answer in answers:
            found |= self._checked(answer)
        for c, pair in found.items():
            check_values(pair, task.heads[c].values_checksum, task.heads[c].nnz, f"the update of client {c}")

    @property
    def _longer(self) -> Patience:
        patience = self._around.patience
        return replace(patience, deadline=patience.deadline + LONGER)

    def _answer(self, task: Task, orders: Orders, leader: int) -> Answer:
        """Begin to receive what a leader makes of its clients."""
        comm, group = self._around.ranks.comm, self._group(orders, leader, task.masks)
        pairs = np.empty((len(group.masks) + 1, 2), np.uint64)
        told = comm.Irecv(pairs, leader, self._sums_tag)
        ranges = group.ranges(self._around.cuts)
        where = leader, self._answer_tag, f"the mean of the node of rank {leader}"
        contents = Contents(ranges, group.mask, ValueCoding.RAW_F32, None)
        stream = Inbox(comm, where, contents, self._longer, self._around.meter)
        self._streams.append(stream)
        return Answer(leader, group, pairs, told, Coming(stream, ranges[0][1], group.mask, 0, Checksum()))

    def _checked(self, answer: Answer) -> dict[int, Checksum]:
        """Return the checksums of what a leader got; raise ``WireError`` when its mean came otherwise than it left."""
        with self._around.meter.time("transfer"):
            self._longer.wait(answer.told, f"the checksums of rank {answer.rank}")
        *found, last = (Checksum(int(xor64), int(sum64)) for xor64, sum64 in answer.pairs)
        count, what = answer.group.mask.count(), f"the mean of the node of rank {answer.rank}"
        check_values(answer.coming.sum, last, count, what)
        return dict(zip(answer.group.masks, found, strict=True))

    @staticmethod
    def _share(task: Task, orders: Orders) -> HoldersShare | None:
        """Return by what the sum is to be divided; None where that is 1 everywhere."""
        weights, masks = orders.weights[orders.merged].astype(np.float32), [task.masks[c] for c in orders.merged]
        if not orders.skip_pruned or not weights.any() or all(mask.is_full for mask in masks):
            return None
        return HoldersShare(masks, weights)

    def _add(
        self, addends: list[Addend], orders: Orders, share: HoldersShare | None, lo: int, hi: int, theta: Values
    ) -> None:
        """Merge one range of all that comes."""
        meter = self._around.meter
        with meter.time("merge"):  # the values are under way
            scale = None if share is None else share.of(lo, hi)
        values = [addend.coming.take(lo, hi) for addend in addends]
        with meter.time("decode"):
            for addend, part in zip(addends, values, strict=True):
                addend.coming.note(part)
        terms = [(part, a.coming.mask, a.weight) for part, a in zip(values, addends, strict=True) if a.weight]
        if not terms and orders.skip_pruned:
            return
        parts, masks = [part for part, _, _ in terms], [mask for _, mask, _ in terms]
        weights, out = np.array([weight for _, _, weight in terms], np.float32), theta if scale is None else None
        with meter.time("merge"):
            mean = merge_range(theta, parts, masks, weights, lo, hi, out, skip_pruned=False)
            if scale is not None:
                np.divide(mean, scale, out=theta, where=scale > 0)

    def _moved_back(self, task: Task, orders: Orders) -> dict[int, Moved]:
        """Return what moves of each leader's answer."""
        groups = {r: self._group(orders, r, task.masks) for r in self._told if self._members(orders, r)}
        return {r: Moved(16 * (len(group.masks) + 1), 0, 4 * group.mask.count()) for r, group in groups.items()}
