"""Uplink: surviving values of all clients, merged at the server range by range as they arrive.

Two steps, because the weights of the mean depend on what the heads say: ``heads`` brings mask changes, buffers and
scalars; ``merge`` moves the values. All clients' values of one parameter range are merged, in client order, while the
next ones arrive: the server holds a few ranges per client and nothing else, and the bits of the result depend neither
on the order of arrival nor on the number of ranks.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.coding import Wire
from fedmpi.comm.delegated import Delegated, Moved
from fedmpi.comm.gathering import gather_merge
from fedmpi.comm.hierarchical import Hierarchical
from fedmpi.comm.parcels import Room
from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.segments import Cuts
from fedmpi.comm.sharded import Sharded
from fedmpi.comm.shared import SharedUpdates
from fedmpi.comm.task import Surroundings, Task, Values
from fedmpi.comm.traffic import Meter, Traffic
from fedmpi.comm.waiting import Patience
from fedmpi.errors import WireError
from fedmpi.sparse import (
    Checksum,
    Flag,
    Head,
    Kind,
    Layout,
    Mask,
    ValueCoding,
    decode_head,
    encode_head,
    head_bound,
    rounded,
    values_checksum,
)
from fedmpi.sparse.header import Header


@dataclass(frozen=True)
class Known:
    """What the server remembers of a client's mask: the mask and its epoch."""

    mask: Mask
    epoch: int


class Reduce:
    """The planned uplink: segmented gather-merge.

    Parameters
    ----------
    ranks, layout
        Fixed for the life of the plan.
    segment_bytes
        Size of a parameter range when dense, in bytes; None takes what fits what travels. The bits are the same.
    max_scalars
        How many float64 scalars a head may carry.
    wire
        Chooses the coding of the values.
    shared
        Memory in which clients may lay down raw values; `free` gives it back.
    sharded
        Whether every rank merges a share of the parameters.
    nodes
        Of each rank, by any number: where there are several, each is to merge its own clients first. The bits of the
        mean then depend on them.
    """

    def __init__(
        self,
        ranks: Ranks,
        layout: Layout,
        *,
        segment_bytes: int | None,
        max_scalars: int,
        patience: Patience,
        meter: Meter,
        wire: Wire = Wire(),  # noqa: B008 - frozen
        shared: SharedUpdates | None = None,
        sharded: bool = False,
        nodes: Sequence[int] | None = None,
    ) -> None:
        self._ranks, self._layout, self._meter = ranks, layout, meter
        self._patience = patience.lively(ranks.size, hub=ranks.is_server)
        self._cuts = Cuts(layout.size, len(ranks.hosts), segment_bytes)
        self._around = Surroundings(ranks, self._cuts, self._patience, meter)
        self._coding = wire.coding(reference=True)
        self._shared = shared
        self._delegated: Delegated | None = Sharded(self._around) if sharded and ranks.size > 1 else None
        if nodes is not None and len({*nodes}) > 1:
            self._delegated = Hierarchical(self._around, nodes)
        self._open: list[Traffic] = []
        self._codings: dict[int, ValueCoding] = {}
        self._limit, self._max_scalars = head_bound(layout, max_scalars), max_scalars

    def segments(self, mask: Mask | None) -> int:
        """Return in how many ranges the values of a mask travel; heads must say so. *Not collective.*"""
        return 0 if mask is None else self._cuts.count(mask.count())

    def free(self) -> None:
        """*Collective*. Give back the shared memory, if there is any; the plan must not be used any more."""
        if self._shared is not None:
            self._shared.free()
            self._shared = None

    @property
    def coding(self) -> ValueCoding:
        """How the values of updates travel; their heads must say so."""
        return self._coding

    @property
    def keeps_references(self) -> bool:
        """Whether what was sent down must be remembered: values are coded against it."""
        return self._coding == ValueCoding.LOSSLESS_DELTA

    def checksum(self, client: int, values: Values) -> Checksum:
        """Return what a hosted client's head is to say of its values; nothing where none move. *Not collective.*"""
        return Checksum() if self._is_laid(client, self._coding) else values_checksum(values)

    def room(self, client: int) -> Room | None:
        """Return what makes room for a hosted client's values where the server reads them; None where they are sent.

        *Not collective.* What lies there stays until the client's next values; it needs no `rounded`.
        """
        if self._shared is None or not self._is_laid(client, self._coding):
            return None
        return partial(self._shared.room, client)

    def rounded(self, values: Values) -> Values:
        """Return what the server will see of ``values``: themselves, unless the coding rounds. *Not collective.*"""
        return rounded(values, self._coding)

    def heads(
        self,
        kind: Kind,
        round: int,
        outgoing: Mapping[int, tuple[Head, Mask]],
        known: Mapping[int, Known],
        *,
        since: float,
    ) -> dict[int, Head]:
        """*Collective*. Bring one head of every client that takes part to the server.

        ``outgoing`` holds head and previous mask of each hosted one; ``known`` (server only) what it remembers of all
        of them. Returns the heads in client order on the server, nothing elsewhere. ``since`` is the clock at the start
        of the round.

        Raises
        ------
        WireError
            On the server, when a head does not fit layout, round, sender or mask epoch.
        """
        start = time.perf_counter()
        self._codings = {c: head.coding for c, (head, _) in outgoing.items()}
        if kind is Kind.UPDATE:
            outgoing = {c: (self._flagged(head), previous) for c, (head, previous) in outgoing.items()}
        encoded = {c: encode_head(head, self._layout, previous) for c, (head, previous) in sorted(outgoing.items())}
        if not self._ranks.is_server:
            sends = [self._ranks.comm.Isend([data, MPI.BYTE], SERVER) for data, _ in encoded.values()]
            self._patience.wait_all(sends, "the server to take the heads")
            return {}
        with self._meter.time("wait"):
            raw = {c: encoded[c][0] if c in encoded else self._receive_head(c) for c in sorted(known)}
        heads = {c: self._decode(data, kind, round, c, known[c]) for c, data in raw.items()}
        spent = time.perf_counter() - start
        headers = [Header.unpack(raw[c].data, self._layout, self._max_scalars) for c in raw]
        messages = [Traffic.of(header, start=start - since, seconds=spent) for header in headers]
        if kind is Kind.UPDATE:
            self._open = messages  # the values are still to come
            self._codings = {c: head.coding for c, head in heads.items()}
        else:
            self._meter.add(messages)
        return heads

    def _flagged(self, head: Head) -> Head:
        """Return the head of an update, which says so where the values are laid down and not sent."""
        if not self._is_laid(head.client, head.coding):
            return head
        return replace(head, flags=head.flags | Flag.SHARED, values_checksum=Checksum())

    def _is_laid(self, client: int, coding: ValueCoding) -> bool:
        return self._shared is not None and self._shared.takes(client, coding)

    def _receive_head(self, client: int) -> NDArray[np.uint8]:
        host = self._ranks.hosts[client]
        return self._patience.receive_bytes(self._ranks.comm, host, self._limit, f"client {client} on rank {host}")

    def _decode(self, data: NDArray[np.uint8], kind: Kind, round: int, client: int, known: Known) -> Head:
        head = decode_head(
            data,
            self._layout,
            kind=kind,
            round=round,
            client=client,
            epoch=known.epoch,
            previous=known.mask,
            max_scalars=self._max_scalars,
        )
        if head.segments != self.segments(head.mask):
            raise WireError(f"client {client}: segments: got {head.segments}, expected {self.segments(head.mask)}")
        if bool(head.flags & Flag.SHARED) != (kind is Kind.UPDATE and self._is_laid(client, head.coding)):
            raise WireError(f"client {client}: flags {head.flags:#06x} do not fit how its values are to come")
        return head

    def merge(
        self,
        values: Mapping[int, Values],
        masks: Mapping[int, Mask],
        heads: Mapping[int, Head],
        weights: Mapping[int, float],
        theta: Values | None,
        *,
        skip_pruned: bool = True,
        references: Mapping[int, Values] | None = None,
    ) -> None:
        """*Collective*. Merge the values of all that take part into ``theta``, in place, on the server.

        Parameters
        ----------
        values
            Surviving values of each hosted client, ``float32[nnz]``, as `rounded` returns them.
        masks
            Masks of this round of those that take part: all on the server, the hosted ones elsewhere.
        heads, weights
            Server only: what `heads` returned, and the weight of every client that takes part. The values of other
            clients are received and dropped.
        theta
            Server only: ``float32[N]``, overwritten by the weighted mean over the holders of each entry; entries that
            no client holds keep their value.
        skip_pruned
            SAS: leave pruned entries out of the mean. False counts them as zeros.
        references
            For hosted clients, what the server sent down: ``float32[N]``, equal to ``theta`` at the client's mask.
            Lossless values are coded against it; the server decodes each range before the merge overwrites it.

        Raises
        ------
        WireError
            On the server, when a client's values do not decode or their checksum does not match.
        """
        begin = time.perf_counter()
        task = Task(values, masks, self._codings, heads, weights, theta, skip_pruned, references or {})
        if self._delegated is not None and all(map(Delegated.takes, {*self._codings.values()} or {self._coding})):
            ups, means = self._delegated.merge(task)
        else:
            sizes = gather_merge(self._around, task, self._shared)
            ups, means = {c: Moved(values=size) for c, size in sizes.items()}, {}
        self._note(ups, means, time.perf_counter() - begin)

    def _note(self, ups: Mapping[int, Moved], means: Mapping[int, Moved], seconds: float) -> None:
        """Note the messages that are now complete, and those that brought what other ranks merged."""
        for message in self._open:
            m = ups[message.client]
            whole = replace(message, header=message.header + m.header, mask=message.mask + m.mask, values=m.values)
            self._meter.add([replace(whole, seconds=message.seconds + seconds)])
        for rank, m in means.items():
            first = self._ranks.hosts.index(rank)
            self._meter.add([Traffic.of_means(self._open[0], first, m.header, m.values, seconds)])
        self._open = []
