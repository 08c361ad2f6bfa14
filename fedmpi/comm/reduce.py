"""Uplink: surviving values of all clients, merged at the server range by range as they arrive.

Two steps, because the weights of the mean depend on what the heads say: ``heads`` brings mask changes, buffers and
scalars; ``merge`` moves the values. All clients' values of one parameter range are merged, in client order, while the
next ones arrive: the server holds a few ranges per client and nothing else, and the bits of the result depend neither
on the order of arrival nor on the number of ranks.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.coding import Wire
from fedmpi.comm.flight import Flight, budget
from fedmpi.comm.merging import Merge
from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.segments import segments
from fedmpi.comm.traffic import Meter, Traffic
from fedmpi.comm.waiting import Patience, keep_alive
from fedmpi.sparse import (
    Head,
    Kind,
    Layout,
    Mask,
    ValueCoding,
    decode_head,
    encode_head,
    encode_values,
    head_bound,
    rounded,
    values_bound,
)
from fedmpi.sparse.header import Header
from fedmpi.sparse.kernels import pack

Values = NDArray[np.float32]
Arriving = dict[int, tuple[NDArray[np.uint8], MPI.Request | None]]


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
        Size of a parameter range when dense, in bytes; any size gives the same bits.
    max_scalars
        How many float64 scalars a head may carry.
    wire
        Chooses the coding of the values.
    """

    def __init__(
        self,
        ranks: Ranks,
        layout: Layout,
        *,
        segment_bytes: int,
        max_scalars: int,
        patience: Patience,
        meter: Meter,
        wire: Wire = Wire(),  # noqa: B008 - frozen
    ) -> None:
        self._ranks, self._layout, self._patience, self._meter = ranks, layout, patience, meter
        self._segments = segments(layout.size, segment_bytes)
        self._coding = wire.coding(reference=True)
        self._open: list[Traffic] = []
        self._codings: dict[int, ValueCoding] = {}
        self._limit, self._max_scalars = head_bound(layout, max_scalars), max_scalars

    @property
    def segments(self) -> int:
        """In how many ranges values travel."""
        return len(self._segments)

    @property
    def coding(self) -> ValueCoding:
        """How the values of updates travel; their heads must say so."""
        return self._coding

    @property
    def keeps_references(self) -> bool:
        """Whether what was sent down must be remembered: values are coded against it."""
        return self._coding == ValueCoding.LOSSLESS_DELTA

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

    def _receive_head(self, client: int) -> NDArray[np.uint8]:
        host = self._ranks.hosts[client]
        return self._patience.receive_bytes(self._ranks.comm, host, self._limit, f"client {client} on rank {host}")

    def _decode(self, data: NDArray[np.uint8], kind: Kind, round: int, client: int, known: Known) -> Head:
        return decode_head(
            data,
            self._layout,
            kind=kind,
            round=round,
            client=client,
            epoch=known.epoch,
            previous=known.mask,
            segments=len(self._segments),
            max_scalars=self._max_scalars,
        )

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
        references = references or {}
        if theta is None:
            self._send_values(values, masks, references)
            return
        begin = time.perf_counter()
        job = Merge(masks, heads, weights, theta, self._meter, skip_pruned=skip_pruned)
        for (lo, hi), arrived in zip(self._segments, self._arrivals(values, masks, references), strict=True):
            job.add(lo, hi, arrived)
        job.check()
        elapsed = time.perf_counter() - begin
        self._meter.add(replace(m, seconds=m.seconds + elapsed, values=job.bytes[m.client]) for m in self._open)
        self._open = []

    def _encode(
        self, values: Values, client: int, s: int, masks: Mapping[int, Mask], references: Mapping[int, Values]
    ) -> NDArray[np.uint8]:
        """Return range ``s`` of a hosted client's update, whose values are ``values``."""
        reference = references.get(client)
        coding = self._codings[client]
        with self._meter.time_encoding(client):
            if reference is None or coding != ValueCoding.LOSSLESS_DELTA:
                return encode_values(values, coding)
            return encode_values(values, coding, pack(reference, masks[client], *self._segments[s]))

    def _send_values(
        self, values: Mapping[int, Values], masks: Mapping[int, Mask], references: Mapping[int, Values]
    ) -> None:
        comm, at, sends = self._ranks.comm, dict.fromkeys(sorted(values), 0), []
        for s, (lo, hi) in enumerate(self._segments):
            for c, done in at.items():
                count = masks[c].count(lo, hi)
                if count:
                    data = self._encode(values[c][done : done + count], c, s, masks, references)
                    sends.append(comm.Isend([data, MPI.BYTE], SERVER))
                    at[c] = done + count
        self._patience.wait_all(sends, "the server to take the updates")

    def _arrivals(
        self, values: Mapping[int, Values], masks: Mapping[int, Mask], references: Mapping[int, Values]
    ) -> Iterator[dict[int, NDArray[np.uint8]]]:
        """Yield every client's values range by range; the next ranges arrive while the caller works on this one."""
        at = dict.fromkeys(values, 0)
        flight: Flight[Arriving] = Flight(budget(self._layout.size))
        following = 0
        for _ in self._segments:
            while following < len(self._segments) and not flight.is_full:
                posted = self._post(following, masks, values, references, at)
                flight.add(sum(buffer.size for buffer, _ in posted.values()), posted)
                following += 1
            arrived = {c: self._await(c, *posted) for c, posted in flight.pop().items()}
            try:
                yield arrived
            except GeneratorExit:
                keep_alive(flight.items)
                raise

    def _await(self, client: int, buffer: NDArray[np.uint8], request: MPI.Request | None) -> NDArray[np.uint8]:
        """Return what came of a client's range."""
        if request is None:
            return buffer
        what = f"the values of client {client} on rank {self._ranks.hosts[client]}"
        with self._meter.time("transfer"):
            return buffer[: self._patience.wait_bytes([request], what)[0]]

    def _post(
        self,
        s: int,
        masks: Mapping[int, Mask],
        values: Mapping[int, Values],
        references: Mapping[int, Values],
        at: dict[int, int],
    ) -> Arriving:
        """Start receiving range ``s`` of every client; the clients of this rank are read in place."""
        posted: Arriving = {}
        for c in sorted(masks) if s < len(self._segments) else ():
            count = masks[c].count(*self._segments[s])
            if c in values:
                posted[c] = self._encode(values[c][at[c] : at[c] + count], c, s, masks, references), None
                at[c] += count
            else:
                buffer = np.empty(values_bound(self._codings[c], count), np.uint8)
                request = self._ranks.comm.Irecv([buffer, MPI.BYTE], self._ranks.hosts[c]) if count else None
                posted[c] = buffer, request
        return posted
