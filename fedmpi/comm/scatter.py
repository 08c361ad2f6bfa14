"""Downlink: to every client the values of the server's vector at the positions that its mask keeps.

Both ends know the positions, so no index travels; the head carries their hash, and a client whose mask differs refuses.
A planned object: construct with ranks and layout, call once per delivery.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.coding import Wire
from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.segments import segments
from fedmpi.comm.traffic import Meter, Traffic
from fedmpi.comm.waiting import Patience
from fedmpi.errors import WireError
from fedmpi.sparse import (
    Checksum,
    Head,
    Kind,
    Layout,
    Mask,
    ValueCoding,
    decode_head,
    decode_range,
    encode_head,
    encode_range,
    head_bound,
    rounded,
    values_bound,
    values_checksum,
)
from fedmpi.sparse.header import Header
from fedmpi.sparse.kernels import pack

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Address:
    """Which positions one client receives, and the epoch of the mask that says so (both ends know both).

    ``reference`` (``float32[N]``, or None) holds earlier values, the same at both ends at these positions.
    """

    positions: Mask
    epoch: int
    reference: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Parcel:
    """What one client received: values at its positions, ``float32[nnz]``, and buffers, ``float32[B]``."""

    values: NDArray[np.float32]
    buffers: NDArray[np.float32]


class Scatter:
    """The planned downlink.

    Parameters
    ----------
    ranks, layout
        Fixed for the life of the plan.
    segment_bytes
        Size of a parameter range when dense, in bytes.
    wire
        Chooses the coding of each message's values.
    """

    def __init__(
        self,
        ranks: Ranks,
        layout: Layout,
        *,
        segment_bytes: int,
        patience: Patience,
        meter: Meter,
        wire: Wire = Wire(),  # noqa: B008 - frozen
    ) -> None:
        self._ranks, self._layout, self._patience, self._meter = ranks, layout, patience, meter
        self._segments, self._wire = segments(layout.size, segment_bytes), wire

    def __call__(
        self,
        kind: Kind,
        round: int,
        addresses: Mapping[int, Address],
        source: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
        *,
        since: float,
    ) -> dict[int, Parcel]:
        """*Collective*. Deliver ``source`` = (theta ``float32[N]``, buffers ``float32[B]``) of the server.

        ``addresses`` names the receiving clients: all of them on the server, the hosted ones elsewhere. Returns the
        parcels of the clients that this rank hosts. ``since`` is the clock at the start of the round.

        Raises
        ------
        WireError
            When a head or a checksum does not fit what this rank expects.
        """
        if source is not None:
            return self._send(kind, round, dict(sorted(addresses.items())), *source, since)
        return self._receive(kind, round, dict(sorted(addresses.items())))

    def _send(
        self,
        kind: Kind,
        round: int,
        addresses: dict[int, Address],
        theta: NDArray[np.float32],
        buffers: NDArray[np.float32],
        since: float,
    ) -> dict[int, Parcel]:
        start = time.perf_counter()
        codings = {c: self._wire.coding(reference=a.reference is not None) for c, a in addresses.items()}
        with self._meter.time("encode"):
            heads = {c: self._head(kind, round, c, a, theta, buffers, codings[c]) for c, a in addresses.items()}
        local = {c: np.empty(a.positions.count(), np.float32) for c, a in addresses.items() if self._is_local(c)}
        sizes = self._send_values(theta, addresses, heads, codings, local)
        spent = time.perf_counter() - start
        headers = {c: Header.unpack(head.data, self._layout, 0) for c, head in heads.items()}
        self._meter.add(Traffic.of(h, start=start - since, seconds=spent, values=sizes[c]) for c, h in headers.items())
        return {c: Parcel(values, buffers.copy()) for c, values in local.items()}

    def _is_local(self, client: int) -> bool:
        return self._ranks.hosts[client] == SERVER

    def _head(
        self,
        kind: Kind,
        round: int,
        client: int,
        address: Address,
        theta: NDArray[np.float32],
        buffers: NDArray[np.float32],
        coding: ValueCoding,
    ) -> Bytes:
        head = Head(
            kind=kind,
            round=round,
            client=client,
            base_epoch=address.epoch,
            epoch=address.epoch,
            mask=address.positions,
            buffers=buffers,
            values_checksum=self._checksum(theta, address.positions, coding),
            segments=len(self._segments),
            coding=coding,
        )
        return encode_head(head, self._layout, previous=address.positions)[0]

    def _checksum(self, theta: NDArray[np.float32], positions: Mask, coding: ValueCoding) -> Checksum:
        """Return the checksum of the values to come; packing twice costs less than holding them all."""
        total, at = Checksum(), 0
        for lo, hi in self._segments:
            values = rounded(pack(theta, positions, lo, hi), coding)
            total = total.combine(values_checksum(values, at))
            at += values.size
        return total

    def _send_values(
        self,
        theta: NDArray[np.float32],
        addresses: dict[int, Address],
        heads: dict[int, Bytes],
        codings: dict[int, ValueCoding],
        local: dict[int, NDArray[np.float32]],
    ) -> dict[int, int]:
        """Send heads, then the values range by range, and fill in those of ``local`` clients; return bytes of values.

        At most two ranges are in flight, so memory stays small.
        """
        hosts, comm = self._ranks.hosts, self._ranks.comm
        sizes, at = dict.fromkeys(addresses, 0), dict.fromkeys(local, 0)
        before = {c: comm.Isend([heads[c], MPI.BYTE], hosts[c]) for c in addresses if c not in local}
        for lo, hi in self._segments:
            now = {}
            for c, a in addresses.items():
                with self._meter.time("encode"):
                    data = encode_range(theta, a.positions, lo, hi, codings[c], a.reference)
                sizes[c] += data.size
                if c in local:
                    values = decode_range(data, a.positions, lo, hi, codings[c], a.reference)
                    local[c][at[c] : at[c] + values.size] = values
                    at[c] += values.size
                elif data.size:
                    now[c] = comm.Isend([data, MPI.BYTE], hosts[c])
            self._wait_for_takers(before)
            before = now
        self._wait_for_takers(before)
        return sizes

    def _wait_for_takers(self, sends: Mapping[int, MPI.Request]) -> None:
        with self._meter.time("transfer"):
            for c, request in sends.items():
                self._patience.wait(request, f"client {c} on rank {self._ranks.hosts[c]} to take the model")

    def _receive(self, kind: Kind, round: int, addresses: dict[int, Address]) -> dict[int, Parcel]:
        comm, limit = self._ranks.comm, head_bound(self._layout, 0)
        heads = {
            c: decode_head(
                self._patience.receive_bytes(comm, SERVER, limit, f"the model for client {c}"),
                self._layout,
                kind=kind,
                round=round,
                client=c,
                epoch=a.epoch,
                previous=a.positions,
                segments=len(self._segments),
                max_scalars=0,
            )
            for c, a in addresses.items()
        }
        values = {c: np.empty(a.positions.count(), np.float32) for c, a in addresses.items()}
        codings = {c: head.coding for c, head in heads.items()}
        self._receive_values(addresses, codings, values)
        for c, received in values.items():
            check_values(values_checksum(received), heads[c], f"the model for client {c}")
        return {c: Parcel(values[c], heads[c].buffers) for c in addresses}

    def _receive_values(
        self, addresses: dict[int, Address], codings: dict[int, ValueCoding], values: dict[int, NDArray[np.float32]]
    ) -> None:
        """Fill in the values as they come. Receives are posted in the server's order: by range, then by client."""
        posted, at = [], dict.fromkeys(addresses, 0)
        for lo, hi in self._segments:
            for c, address in addresses.items():
                count = address.positions.count(lo, hi)
                target = values[c][at[c] : at[c] + count]
                raw = codings[c] == ValueCoding.RAW_F32
                buffer = target.view(np.uint8) if raw else np.empty(values_bound(codings[c], count), np.uint8)
                at[c] += count
                if count:
                    posted.append((c, lo, hi, target, buffer, self._ranks.comm.Irecv([buffer, MPI.BYTE], SERVER)))
        if all(coding == ValueCoding.RAW_F32 for coding in codings.values()):
            self._patience.wait_all([request for *_, request in posted], "the server's model")
            return
        sizes = self._patience.wait_bytes([request for *_, request in posted], "the server's model")
        for (c, lo, hi, target, buffer, _), size in zip(posted, sizes, strict=True):
            a = addresses[c]
            target[:] = decode_range(buffer[:size], a.positions, lo, hi, codings[c], a.reference)


def check_values(found: Checksum, head: Head, what: str) -> None:
    """Raise ``WireError`` when the values that came do not have the checksum that was announced. *Not collective.*"""
    if found != head.values_checksum:
        message = f"{what}: the checksum of {head.nnz} values does not match; they were damaged on the way"
        raise WireError(message)
