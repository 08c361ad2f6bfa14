"""What uplinks share in which other ranks than the server merge, each for the entries and clients that are its part.

The server tells them the weights (`Orders`). A client sends its values to those who merge them, and before them what
these must know (`Notice`). They answer with what they have merged, and with the checksums of what they got and of what
they send. The server, knowing all masks, knows what comes from where, and compares the checksums with those of the
heads.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.inbox import Contents, Inbox, Own, Stream, address, tag
from fedmpi.comm.ranks import SERVER
from fedmpi.comm.segments import Range, cut
from fedmpi.comm.sharing import NOTICE_BYTES, Notice, changed, parted
from fedmpi.comm.task import Surroundings, Task, Values
from fedmpi.comm.waiting import keep_alive
from fedmpi.sparse import Checksum, Mask, ValueCoding, values_bound, values_checksum

DROPPED = -1.0
"""The weight of a client whose values come and are not merged; NaN: none come."""


@dataclass(frozen=True)
class Orders:
    """What the server tells: the weight of every client, and whether pruned entries are left out."""

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
    """Bytes that a merge handed to MPI, by section, for one client's update or one rank's answer."""

    header: int = 0
    mask: int = 0
    values: int = 0


@dataclass
class Coming:
    """One client's values of this rank's entries: the stream, its cuts, its mask, and what has come of it."""

    stream: Stream
    step: int
    mask: Mask
    before: int
    sum: Checksum

    def take(self, lo: int, hi: int) -> Values:
        """Return the values of the next range. *Not collective.*"""
        return self.stream.take(lo, hi)

    def note(self, values: Values) -> None:
        """Add what was taken to the checksum. *Not collective.*"""
        self.sum = self.sum.combine(values_checksum(values, self.before))
        self.before += values.size


class Delegated(ABC):
    """Such a plan; it remembers masks from round to round, so that only changes travel.

    Parameters
    ----------
    mine
        The entries that this rank merges.
    told
        The ranks that the server sends the weights.
    """

    def __init__(self, around: Surroundings, mine: Range, told: Iterable[int]) -> None:
        self._around, ranks = around, around.ranks
        self._lo, self._hi = mine
        self._told = tuple(told)
        self._streams: list[Stream] = []
        full = Mask.full(around.cuts.size)
        self._announced = dict.fromkeys(ranks.clients if ranks.is_server else ranks.hosted, full)
        self._parts = dict.fromkeys(ranks.clients, Mask.full(self._hi - self._lo))
        first = tag(len(ranks.hosts))
        self._orders_tag, self._sums_tag, self._answer_tag, self._notice_tag = range(first, first + 4)

    @staticmethod
    def takes(coding: ValueCoding) -> bool:
        """Return whether such values can go this way: what is coded against the server's vector cannot."""
        return coding in {ValueCoding.RAW_F32, ValueCoding.BF16, ValueCoding.FP16}

    def merge(self, task: Task) -> tuple[dict[int, Moved], dict[int, Moved]]:
        """*Collective*. Merge into ``task.theta`` on the server.

        Returns what moved of each client's values and of each rank's answer, nothing but on the server.
        """
        sends: list[MPI.Request] = []
        self._streams.clear()
        try:
            orders = self._orders(task, sends)
            ups = {c: self._moved_up(task, c) for c in orders.sending if task.theta is not None}
            answers = {} if task.theta is None else self._moved_back(task, orders)
            for c in sorted(task.values):
                self._announce(task, c, sends)
            self._work(task, orders, sends)
            self._around.patience.wait_all(sends, "the ranks that merge")
        except BaseException:
            keep_alive([*sends, *(late for stream in self._streams for late in stream.under_way)])
            raise
        return ups, answers

    @abstractmethod
    def _targets(self, client: int) -> Iterator[tuple[int, int, int]]:
        """Yield the ranks that merge a client's values, each with the range of its entries, ascending."""

    @abstractmethod
    def _work(self, task: Task, orders: Orders, sends: list[MPI.Request]) -> None:
        """Do this rank's part; what is under way goes into ``sends``."""

    @abstractmethod
    def _moved_back(self, task: Task, orders: Orders) -> dict[int, Moved]:
        """Return what moves of each rank's answer; on the server, which knows all masks."""

    def _orders(self, task: Task, sends: list[MPI.Request]) -> Orders:
        """Tell, or hear, the weights; who has nothing to merge hears none."""
        ranks = self._around.ranks
        words = np.full(len(ranks.hosts) + 1, np.nan)
        if task.theta is not None:
            words[-1] = task.skip_pruned
            for c in task.masks:
                words[c] = task.weights.get(c, DROPPED)
            sends += [ranks.comm.Isend(words, rank, self._orders_tag) for rank in self._told]
            self._around.meter.control += words.nbytes * len(self._told)
        elif ranks.rank in self._told:
            request = ranks.comm.Irecv(words, SERVER, self._orders_tag)
            self._around.patience.wait(request, "the server's weights")
        return Orders(words[:-1], bool(words[-1] == 1))

    def _announce(self, task: Task, client: int, sends: list[MPI.Request]) -> None:
        """Send the values of a hosted client to who merges them, and before them what those must know."""
        ranks, mask = self._around.ranks, task.masks[client]
        total, step = mask.count(), self._around.cuts.step(mask.count())
        for rank, lo, hi in self._targets(client):
            if rank not in {SERVER, ranks.rank}:
                part, last = parted(mask, lo, hi), parted(self._announced[client], lo, hi)
                notice = Notice.of(mask.count(0, lo), total, part, last).pack()
                sends.append(ranks.comm.Isend([notice, MPI.BYTE], rank, self._notice_tag + client))
            if rank != ranks.rank:
                for data in task.encoded(client, cut(lo, hi, step), self._around.meter):
                    sends += [ranks.comm.Isend([data, MPI.BYTE], rank, tag(client))] if data.size else []
        self._announced[client] = mask

    def _open(self, task: Task, client: int) -> Coming:
        """Begin to receive a client's values of this rank's entries."""
        ranks, lo, hi, coding = self._around.ranks, self._lo, self._hi, self._coding(task)
        if client in task.masks:  # of this rank, or this is the server, which knows all
            whole = task.masks[client]
            before, total, mask = whole.count(0, lo), whole.count(), parted(whole, lo, hi)
        else:
            what, source = f"the update of client {client}", ranks.hosts[client]
            limit, where = NOTICE_BYTES + (hi - lo + 7) // 8, f"{what} on rank {source}"
            data = self._around.patience.receive_bytes(ranks.comm, source, limit, where, self._notice_tag + client)
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
        self._streams.append(stream)
        return Coming(stream, step, mask, before, Checksum())

    @staticmethod
    def _coding(task: Task) -> ValueCoding:
        """Return the coding of all values: a run has one."""
        return next(iter(task.codings.values()), ValueCoding.RAW_F32)

    def _moved_up(self, task: Task, client: int) -> Moved:
        """Return what moves of a client's values; on the server."""
        mask, host, header, told, values = task.masks[client], self._around.ranks.hosts[client], 0, 0, 0
        for rank, lo, hi in self._targets(client):
            if rank == host:
                continue
            values += values_bound(task.codings[client], mask.count(lo, hi))
            if rank != SERVER:
                header += NOTICE_BYTES
                told += changed(parted(mask, lo, hi), parted(self._announced[client], lo, hi))
        self._announced[client] = mask
        return Moved(header, told, values)
