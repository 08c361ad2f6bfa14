"""The sharded uplink: every rank merges its share of the parameters of all clients, and the server gets the means.

What the server receives, and its work, then hardly grow with the number of clients. Per parameter the sum runs in
client order, as everywhere: the bits are those of the other plans. Owners of shares answer with the means of the
entries that somebody holds, which the server, knowing all masks, puts in their places.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from mpi4py import MPI

from fedmpi.comm.delegated import Coming, Delegated, Moved, Orders
from fedmpi.comm.inbox import Contents, Inbox
from fedmpi.comm.ranks import SERVER
from fedmpi.comm.segments import Cuts, Range, cut
from fedmpi.comm.sharing import parted, shares, union
from fedmpi.comm.task import Surroundings, Task, Values
from fedmpi.sparse import Checksum, Mask, ValueCoding, check_values, kept, values_checksum
from fedmpi.sparse.kernels import expand, merge_range


class Sharded(Delegated):
    """The plan. *Not collective* to construct."""

    def __init__(self, around: Surroundings) -> None:
        ranks = around.ranks
        self._shares = shares(around.cuts.size, ranks.size)
        super().__init__(around, self._shares[ranks.rank], range(1, ranks.size))

    def _targets(self, _: int) -> Iterator[tuple[int, int, int]]:
        """Yield all ranks that have a share."""
        yield from ((rank, lo, hi) for rank, (lo, hi) in enumerate(self._shares) if lo < hi)

    def _work(self, task: Task, orders: Orders, sends: list[MPI.Request]) -> None:
        mean = np.zeros(self._hi - self._lo, np.float32)
        mean = mean if task.theta is None else task.theta[self._lo : self._hi]
        coming = self._merge_share(task, orders, mean)
        if task.theta is None:
            self._answer(orders, mean, coming, sends)
        else:
            self._collect(task, orders, coming)

    def _merge_share(self, task: Task, orders: Orders, mean: Values) -> dict[int, Coming]:
        """Merge this rank's share of all clients into ``mean``; return what came of each."""
        coming = {c: self._open(task, c) for c in (orders.sending if mean.size else ())}
        meter, merged = self._around.meter, orders.merged
        weights = orders.weights[merged].astype(np.float32)
        for lo, hi in cut(0, mean.size, min((one.step for one in coming.values()), default=64)):
            values = {c: one.take(lo, hi) for c, one in coming.items()}
            with meter.time("decode"):
                for c, one in coming.items():
                    one.note(values[c])
            with meter.time("merge"):
                parts, masks, old = [values[c] for c in merged], [coming[c].mask for c in merged], mean[lo:hi]
                merge_range(old, parts, masks, weights, lo, hi, old, skip_pruned=orders.skip_pruned)
        return coming

    def _answer(self, orders: Orders, mean: Values, coming: Mapping[int, Coming], sends: list[MPI.Request]) -> None:
        """Send checksums and means to the server."""
        if not mean.size:
            return
        comm, holders = self._around.ranks.comm, self._holders(orders, {c: one.mask for c, one in coming.items()})
        values = kept(mean, holders, 0, mean.size)
        pairs = [*(coming[c].sum for c in orders.sending), values_checksum(values)]
        sends.append(comm.Isend(np.array(pairs, np.uint64), SERVER, self._sums_tag))
        at = 0
        for lo, hi in self._answers(mean.size):
            count = holders.count(lo, hi)
            sends += [comm.Isend(values[at : at + count], SERVER, self._answer_tag)] if count else []
            at += count

    def _answers(self, size: int) -> tuple[Range, ...]:
        """Return the ranges of a share in which its means travel."""
        around = self._around
        return cut(0, size, Cuts(around.cuts.size, around.ranks.size, around.cuts.fixed).step(around.cuts.size))

    @staticmethod
    def _holders(orders: Orders, masks: Mapping[int, Mask]) -> Mask:
        """Return which entries of a share have a mean; ``masks`` are those of its part."""
        size = next(iter(masks.values())).size
        if not orders.skip_pruned:
            return Mask.full(size)
        return union((masks[c] for c in orders.merged if np.float32(orders.weights[c])), size)

    def _collect(self, task: Task, orders: Orders, coming: Mapping[int, Coming]) -> None:
        """Put the means of all other ranks in their places; compare all checksums with what the heads announced."""
        sums = {c: one.sum for c, one in coming.items()}
        for rank, (lo, hi) in enumerate(self._shares):
            if rank == SERVER or lo == hi:
                continue
            found = self._take(task, orders, rank)
            for c, pair in zip(orders.sending, found, strict=True):
                sums[c] = sums.get(c, Checksum()).combine(pair)
        for c, found_sum in sums.items():
            head = task.heads[c]
            check_values(found_sum, head.values_checksum, head.nnz, f"the update of client {c}")

    def _take(self, task: Task, orders: Orders, rank: int) -> list[Checksum]:
        """Take one rank's means; return the checksums of the values that it got."""
        ranks, patience, meter = self._around.ranks, self._around.patience, self._around.meter
        lo, hi = self._shares[rank]
        holders = self._holders(orders, {c: parted(task.masks[c], lo, hi) for c in orders.sending})
        pairs = np.empty((len(orders.sending) + 1, 2), np.uint64)
        request = ranks.comm.Irecv(pairs, rank, self._sums_tag)
        ranges = self._answers(hi - lo)
        contents = Contents(ranges, holders, ValueCoding.RAW_F32, None)
        what = f"the means of rank {rank}"
        stream = Inbox(ranks.comm, (rank, self._answer_tag, what), contents, patience, meter)
        self._streams.append(stream)
        with meter.time("transfer"):
            patience.wait(request, f"the checksums of rank {rank}")
        assert task.theta is not None  # noqa: S101 - only the server collects
        total = Checksum()
        for at, end in ranges:
            values = stream.take(at, end)
            with meter.time("decode"):
                total = total.combine(values_checksum(values, holders.count(0, at)))
                _place(values, holders, at, end, task.theta[lo + at : lo + end])
        found = [Checksum(int(xor64), int(sum64)) for xor64, sum64 in pairs]
        check_values(total, found.pop(), holders.count(), what)
        return found

    def _moved_back(self, task: Task, orders: Orders) -> dict[int, Moved]:
        """Return what moves of each rank's means."""
        means = {}
        for rank, (lo, hi) in enumerate(self._shares):
            if rank != SERVER and lo < hi:
                held = self._holders(orders, {c: parted(task.masks[c], lo, hi) for c in orders.sending})
                means[rank] = Moved(header=16 * (len(orders.sending) + 1), values=4 * held.count())
        return means


def _place(values: Values, holders: Mask, lo: int, hi: int, target: Values) -> None:
    """Write the means to the held entries of a range; the others stay."""
    if values.size == target.size:
        target[:] = values
    else:
        np.copyto(target, expand(values, holders, lo, hi), where=holders.to_bool(lo, hi))
