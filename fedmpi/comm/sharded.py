"""The sharded uplink: every rank merges its share of the parameters of all clients, and the server gets the means.

What the server receives, and its work, then hardly grow with the number of clients. Per parameter the sum runs in
client order, as everywhere: the bits are those of the other plans. A client sends its values to the ranks that own
them, and before them what those must know (`Notice`). The server sends the weights. Owners answer with the means of the
entries that somebody holds, which the server, knowing all masks, puts in their places, and with the checksums of what
they got and of what they send.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.inbox import Contents, Inbox, Own, Stream, address, tag
from fedmpi.comm.ranks import SERVER
from fedmpi.comm.segments import Cuts, Range, cut
from fedmpi.comm.sharing import NOTICE_BYTES, Notice, changed, parted, shares, union
from fedmpi.comm.task import Surroundings, Task, Values
from fedmpi.comm.waiting import keep_alive
from fedmpi.sparse import Checksum, Mask, ValueCoding, check_values, kept, values_bound, values_checksum
from fedmpi.sparse.kernels import expand, merge_range

DROPPED = -1.0
"""The weight of a client whose values come and are not merged; NaN: none come."""


@dataclass(frozen=True)
class Orders:
    """What the server tells all ranks: the weight of every client, and whether pruned entries are left out."""

    weights: NDArray[np.float64]
    skip_pruned: bool

    @property
    def sending(self) -> list[int]:
        """The clients whose values come."""
        return [int(c) for c in np.flatnonzero(~np.isnan(self.weights))]

    @property
    def merged(self) -> list[int]:
        """The clients of the mean."""
        return [c for c in self.sending if self.weights[c] != DROPPED]


@dataclass(frozen=True)
class Moved:
    """Bytes that a sharded merge handed to MPI, by section, for one client's update or one rank's means."""

    header: int = 0
    mask: int = 0
    values: int = 0


@dataclass
class _Coming:
    """One client's values of this rank's share: the stream, its cuts, its mask, and what has come of it."""

    stream: Stream
    step: int
    mask: Mask
    before: int
    sum: Checksum


class Sharded:
    """The plan; it remembers masks from round to round, so that only changes travel."""

    def __init__(self, around: Surroundings) -> None:
        self._around, ranks = around, around.ranks
        self._shares = shares(around.cuts.size, ranks.size)
        self._lo, self._hi = self._shares[ranks.rank]
        full = Mask.full(around.cuts.size)
        self._announced = dict.fromkeys(ranks.clients if ranks.is_server else ranks.hosted, full)
        self._parts = dict.fromkeys(ranks.clients, Mask.full(self._hi - self._lo))
        first = tag(len(ranks.hosts))
        self._orders_tag, self._sums_tag, self._means_tag, self._notice_tag = range(first, first + 4)

    @staticmethod
    def takes(coding: ValueCoding) -> bool:
        """Return whether such values can go this way: what is coded against the server's vector cannot."""
        return coding in {ValueCoding.RAW_F32, ValueCoding.BF16, ValueCoding.FP16}

    def merge(self, task: Task) -> tuple[dict[int, Moved], dict[int, Moved]]:
        """*Collective*. Merge into ``task.theta`` on the server.

        Returns what moved of each client's values and of each rank's means, nothing but on the server.
        """
        sends: list[MPI.Request] = []
        coming: dict[int, _Coming] = {}
        try:
            orders = self._orders(task, sends)
            moved = self._moved(task, orders)
            for c in sorted(task.values):
                self._announce(task, c, sends)
            mean = np.zeros(self._hi - self._lo, np.float32)
            mean = mean if task.theta is None else task.theta[self._lo : self._hi]
            self._merge_share(task, orders, mean, coming)
            if task.theta is None:
                self._answer(orders, mean, coming, sends)
            else:
                self._collect(task, orders, coming)
            self._around.patience.wait_all(sends, "the ranks to take their shares")
        except BaseException:
            keep_alive([*sends, *(late for one in coming.values() for late in one.stream.under_way)])
            raise
        return moved

    def _orders(self, task: Task, sends: list[MPI.Request]) -> Orders:
        """Tell, or hear, the weights."""
        ranks = self._around.ranks
        words = np.full(len(ranks.hosts) + 1, np.nan)
        if task.theta is None:
            request = ranks.comm.Irecv(words, SERVER, self._orders_tag)
            self._around.patience.wait(request, "the server's weights")
        else:
            words[-1] = task.skip_pruned
            for c in task.masks:
                words[c] = task.weights.get(c, DROPPED)
            sends += [ranks.comm.Isend(words, rank, self._orders_tag) for rank in range(1, ranks.size)]
            self._around.meter.control += words.nbytes * (ranks.size - 1)
        return Orders(words[:-1], bool(words[-1]))

    def _announce(self, task: Task, client: int, sends: list[MPI.Request]) -> None:
        """Send the values of a hosted client to their owners, and before them what those must know."""
        ranks, mask, before = self._around.ranks, task.masks[client], 0
        step, total = self._around.cuts.step(mask.count()), mask.count()
        for rank, (lo, hi) in enumerate(self._shares):
            if rank not in {SERVER, ranks.rank} and lo < hi:
                part, last = parted(mask, lo, hi), parted(self._announced[client], lo, hi)
                notice = Notice.of(before, total, part, last).pack()
                sends.append(ranks.comm.Isend([notice, MPI.BYTE], rank, self._notice_tag + client))
            if rank != ranks.rank:
                for data in task.encoded(client, cut(lo, hi, step), self._around.meter):
                    sends += [ranks.comm.Isend([data, MPI.BYTE], rank, tag(client))] if data.size else []
            before += mask.count(lo, hi)
        self._announced[client] = mask

    def _merge_share(self, task: Task, orders: Orders, mean: Values, coming: dict[int, _Coming]) -> None:
        """Merge this rank's share of all clients into ``mean``."""
        for c in orders.sending if mean.size else ():
            coming[c] = self._open(task, c)
        meter, merged = self._around.meter, orders.merged
        weights = orders.weights[merged].astype(np.float32)
        for lo, hi in cut(0, mean.size, min((one.step for one in coming.values()), default=64)):
            values = {c: one.stream.take(lo, hi) for c, one in coming.items()}
            with meter.time("decode"):
                for c, one in coming.items():
                    one.sum = one.sum.combine(values_checksum(values[c], one.before))
                    one.before += values[c].size
            with meter.time("merge"):
                parts, masks, old = [values[c] for c in merged], [coming[c].mask for c in merged], mean[lo:hi]
                merge_range(old, parts, masks, weights, lo, hi, old, skip_pruned=orders.skip_pruned)

    def _open(self, task: Task, client: int) -> _Coming:
        """Begin to receive a client's values of this rank's share."""
        ranks, lo, hi, coding = self._around.ranks, self._lo, self._hi, self._coding(task)
        if client in task.masks:  # of this rank, or this is the server, which knows all
            whole = task.masks[client]
            before, total, mask = whole.count(0, lo), whole.count(), parted(whole, lo, hi)
        else:
            what, source = f"the update of client {client}", ranks.hosts[client]
            limit = NOTICE_BYTES + (hi - lo + 7) // 8
            data = self._around.patience.receive_bytes(ranks.comm, source, limit, what, self._notice_tag + client)
            notice = Notice.unpack(data, self._around.cuts.size, what)
            before, total, mask = notice.before, notice.total, notice.mask(self._parts[client], what)
        self._parts[client] = mask
        step = self._around.cuts.step(total)
        contents = Contents(cut(0, hi - lo, step), mask, coding, None)
        if client in task.values:
            data_of_it = task.encoded(client, cut(lo, hi, step), self._around.meter)
            stream: Stream = Own(data_of_it, contents, self._around.meter)
        else:
            stream = Inbox(ranks.comm, address(ranks, client), contents, self._around.patience, self._around.meter)
        return _Coming(stream, step, mask, before, Checksum())

    @staticmethod
    def _coding(task: Task) -> ValueCoding:
        """Return the coding of all values: a run has one."""
        return next(iter(task.codings.values()), ValueCoding.RAW_F32)

    def _answer(self, orders: Orders, mean: Values, coming: Mapping[int, _Coming], sends: list[MPI.Request]) -> None:
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
            sends += [comm.Isend(values[at : at + count], SERVER, self._means_tag)] if count else []
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

    def _collect(self, task: Task, orders: Orders, coming: Mapping[int, _Coming]) -> None:
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
        stream = Inbox(ranks.comm, (rank, self._means_tag, what), contents, patience, meter)
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

    def _moved(self, task: Task, orders: Orders) -> tuple[dict[int, Moved], dict[int, Moved]]:
        """Return what moves of each client's values and of each rank's means; the server knows all masks."""
        if task.theta is None:
            return {}, {}
        ups = {c: self._moved_up(task, c) for c in orders.sending}
        owners = [(r, lo, hi) for r, (lo, hi) in enumerate(self._shares) if r != SERVER and lo < hi]
        means = {}
        for rank, lo, hi in owners:
            held = self._holders(orders, {c: parted(task.masks[c], lo, hi) for c in orders.sending})
            means[rank] = Moved(header=16 * (len(orders.sending) + 1), values=4 * held.count())
        return ups, means

    def _moved_up(self, task: Task, client: int) -> Moved:
        mask, host, header, told, values = task.masks[client], self._around.ranks.hosts[client], 0, 0, 0
        for rank, (lo, hi) in enumerate(self._shares):
            if rank == host or lo == hi:
                continue
            values += values_bound(task.codings[client], mask.count(lo, hi))
            if rank != SERVER:
                header += NOTICE_BYTES
                told += changed(parted(mask, lo, hi), parted(self._announced[client], lo, hi))
        self._announced[client] = mask
        return Moved(header, told, values)


def _place(values: Values, holders: Mask, lo: int, hi: int, target: Values) -> None:
    """Write the means to the held entries of a range; the others stay."""
    if values.size == target.size:
        target[:] = values
    else:
        np.copyto(target, expand(values, holders, lo, hi), where=holders.to_bool(lo, hi))
