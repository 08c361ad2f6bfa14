"""Downlink: to every client the values of the server's vector at the positions that its mask keeps.

Both ends know the positions, so no index travels; the head carries their hash, and a client whose mask differs refuses.
A planned object: construct with ranks and layout, call once per delivery. Values travel as messages, or clients take
them from memory that they share with the server; the same values, and the same bytes in the log.
"""

import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.coding import Wire
from fedmpi.comm.flight import Flight, budget
from fedmpi.comm.inbox import tag
from fedmpi.comm.parcels import Address, DeviceRoom, Parcel, Room, as_bytes, in_memory
from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.segments import Cuts, cut
from fedmpi.comm.shared import SharedVector
from fedmpi.comm.traffic import Meter, Traffic
from fedmpi.comm.waiting import Patience
from fedmpi.errors import WireError
from fedmpi.sparse import (
    TRAILER_SIZE,
    Checksum,
    Flag,
    Head,
    Kind,
    Layout,
    ValueCoding,
    check_values,
    cut_checksum,
    decode_head,
    decode_range,
    decode_trailer,
    encode_head,
    encode_kept,
    encode_trailer,
    fill_checksum,
    head_bound,
    kept,
    rounded,
    values_bound,
    values_checksum,
)
from fedmpi.sparse.header import Header
from fedmpi.sparse.kernels import masked_copy

Bytes = NDArray[np.uint8]
Received = NDArray[np.float32] | torch.Tensor


class Scatter:
    """The planned downlink.

    Parameters
    ----------
    ranks, layout
        Fixed for the life of the plan.
    segment_bytes
        Size of a parameter range when dense, in bytes; None takes what fits what travels.
    wire
        Chooses the coding of each message's values.
    shared
        Memory from which clients may take raw values; `free` gives it back.
    room
        Makes the vectors, ``float32[size]``, in which values arrive.
    device_room
        Makes those on a GPU, for raw values of models; None where MPI is to write to the host's memory alone.
    """

    def __init__(
        self,
        ranks: Ranks,
        layout: Layout,
        *,
        segment_bytes: int | None,
        patience: Patience,
        meter: Meter,
        wire: Wire = Wire(),  # noqa: B008 - frozen
        shared: SharedVector | None = None,
        room: Room = in_memory,
        device_room: DeviceRoom | None = None,
    ) -> None:
        self._ranks, self._layout, self._patience, self._meter = ranks, layout, patience, meter
        self._lively = patience.lively(ranks.size, hub=ranks.is_server)
        self._cuts, self._wire, self._shared = Cuts(layout.size, len(ranks.hosts), segment_bytes), wire, shared
        self._room, self._device_room = room, device_room

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
        shared = self._shared if self._is_shared(addresses, codings) else None
        flag = Flag.TRAILING if shared is None else Flag.SHARED
        with self._meter.time("encode"):
            heads = {c: self._head(kind, round, c, a, buffers, codings[c], flag) for c, a in addresses.items()}
        headers = {c: Header.unpack(head.data, self._layout, 0) for c, head in heads.items()}
        local = {c: self._room(a.positions.count()) for c, a in addresses.items() if self._is_local(c)}
        if shared is None:
            sizes = self._send_values(theta, addresses, heads, codings, local)
        else:
            sizes = {c: header.value_bytes for c, header in headers.items()}
            self._share_values(theta, heads, shared)
        spent = time.perf_counter() - start
        self._meter.add(Traffic.of(h, start=start - since, seconds=spent, values=sizes[c]) for c, h in headers.items())
        return {c: Parcel(addresses[c].positions, values, buffers.copy()) for c, values in local.items()}

    def home(self, theta: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the server's vector, ``float32[N]``, where clients take it from: nothing is copied before it is sent.

        *Not collective.* ``theta`` itself where no memory is shared; shared memory is gone with `free`.
        """
        if self._shared is None:
            return theta
        np.copyto(self._shared.array, theta)
        return self._shared.array

    def _is_shared(self, addresses: Mapping[int, Address], codings: Mapping[int, ValueCoding]) -> bool:
        """Return whether the clients are to take the values; coded ones have fewer bytes and are messages."""
        raw = all(coding == ValueCoding.RAW_F32 for coding in codings.values())
        dense = sum(a.positions.density for a in addresses.values())
        return self._shared is not None and raw and dense >= self._shared.least

    def free(self) -> None:
        """*Collective*. Give back the shared memory, if there is any; the plan must not be used any more."""
        if self._shared is not None:
            self._shared.free()
            self._shared = None

    def _is_local(self, client: int) -> bool:
        return self._ranks.hosts[client] == SERVER

    def _head(
        self,
        kind: Kind,
        round: int,
        client: int,
        address: Address,
        buffers: NDArray[np.float32],
        coding: ValueCoding,
        flag: Flag,
    ) -> Bytes:
        head = Head(
            kind=kind,
            round=round,
            client=client,
            base_epoch=address.epoch,
            epoch=address.epoch,
            mask=address.positions,
            buffers=buffers,
            flags=flag,
            segments=self._cuts.count(address.positions.count()),
            coding=coding,
        )
        return encode_head(head, self._layout, previous=address.positions)[0]

    def _share_values(self, theta: NDArray[np.float32], heads: Mapping[int, Bytes], shared: SharedVector) -> None:
        """Write the vector if it is not at home, tell the clients, and wait until each has said that it has its."""
        hosts, comm = self._ranks.hosts, self._ranks.comm
        with self._meter.time("encode"):
            if theta is not shared.array:
                np.copyto(shared.array, theta)
            shared.sync()
        taken = {c: comm.Irecv([bytearray(), MPI.BYTE], hosts[c]) for c in heads}
        self._wait_for_takers({c: comm.Isend([head, MPI.BYTE], hosts[c]) for c, head in heads.items()})
        self._wait_for_takers(taken)
        shared.sync()

    def _send_values(
        self,
        theta: NDArray[np.float32],
        addresses: dict[int, Address],
        heads: dict[int, Bytes],
        codings: dict[int, ValueCoding],
        local: dict[int, NDArray[np.float32]],
    ) -> dict[int, int]:
        """Send heads, the values range by range, and their checksums; fill in ``local``; return bytes of values."""
        hosts, comm = self._ranks.hosts, self._ranks.comm
        remote = [c for c in addresses if c not in local]
        sizes, at, sums = dict.fromkeys(addresses, 0), dict.fromkeys(addresses, 0), dict.fromkeys(addresses, Checksum())
        flight: Flight[dict[int, MPI.Request]] = Flight(budget(self._layout.size))
        flight.add(0, {c: comm.Isend([cut_checksum(heads[c]), MPI.BYTE], hosts[c]) for c in remote})
        steps = {c: self._cuts.step(a.positions.count()) for c, a in addresses.items()}
        for lo, _ in cut(0, theta.size, min(steps.values(), default=1)):
            now, held = {}, 0
            for c, a in addresses.items():
                if lo % steps[c]:
                    continue
                hi = min(lo + steps[c], theta.size)
                with self._meter.time("encode"):
                    values = rounded(kept(theta, a.positions, lo, hi), codings[c])
                    sums[c] = sums[c].combine(values_checksum(values, at[c]))
                    data = encode_kept(values, a.positions, lo, hi, codings[c], a.reference)
                if c in local:
                    local[c][at[c] : at[c] + values.size] = values
                elif data.size:
                    now[c] = comm.Isend([data, MPI.BYTE], hosts[c], tag(c))
                    held += 0 if np.may_share_memory(data, theta) else data.size
                sizes[c], at[c] = sizes[c] + data.size, at[c] + values.size
            flight.add(held, now)
            while flight.is_full:
                self._wait_for_takers(flight.pop())
        flight.add(0, {c: comm.Isend([encode_trailer(sums[c]), MPI.BYTE], hosts[c]) for c in remote})
        while flight:
            self._wait_for_takers(flight.pop())
        return sizes

    def _wait_for_takers(self, sends: Mapping[int, MPI.Request]) -> None:
        with self._meter.time("transfer"):
            for c, request in sends.items():
                self._lively.wait(request, f"client {c} on rank {self._ranks.hosts[c]} to take the model")

    def _receive(self, kind: Kind, round: int, addresses: dict[int, Address]) -> dict[int, Parcel]:
        heads = {c: self._receive_head(kind, round, c, a) for c, a in addresses.items()}
        codings = {c: head.coding for c, head in heads.items()}
        values: Mapping[int, Received]
        if any(head.flags & Flag.SHARED for head in heads.values()):
            values = self._take_values(addresses)
        elif all(coding == ValueCoding.RAW_F32 for coding in codings.values()):
            values = self._receive_raw(kind, addresses)
            self._check(values)
        else:
            values = self._receive_coded(addresses, codings)
            self._check(values)
        return {c: Parcel(a.positions, values[c], heads[c].buffers) for c, a in addresses.items()}

    def _receive_head(self, kind: Kind, round: int, client: int, address: Address) -> Head:
        limit, what = head_bound(self._layout, 0), f"the model for client {client}"
        return decode_head(
            fill_checksum(self._patience.receive_bytes(self._ranks.comm, SERVER, limit, what)),
            self._layout,
            kind=kind,
            round=round,
            client=client,
            epoch=address.epoch,
            previous=address.positions,
            segments=self._cuts.count(address.positions.count()),
            max_scalars=0,
        )

    def _take_values(self, addresses: Mapping[int, Address]) -> dict[int, NDArray[np.float32]]:
        """Copy the values of all hosted clients from shared memory to their places, and say so."""
        if self._shared is None:
            raise WireError("the server's values are in shared memory, of which this rank knows nothing")
        self._shared.sync()
        vector = self._shared.array
        values = {c: masked_copy(vector, a.positions, out=self._room(vector.size)) for c, a in addresses.items()}
        self._shared.sync()
        said = [self._ranks.comm.Isend([b"", MPI.BYTE], SERVER) for _ in addresses]
        self._lively.wait_all(said, "the server to hear that its model is taken")
        return values

    def _check(self, values: Mapping[int, Received]) -> None:
        """Receive the checksums that follow the values, and compare."""
        for c, received in values.items():
            what = f"the model for client {c}"
            trailer = self._lively.receive_bytes(self._ranks.comm, SERVER, TRAILER_SIZE, what)
            check_values(values_checksum(received), decode_trailer(trailer), len(received), what)

    def _receive_raw(self, kind: Kind, addresses: dict[int, Address]) -> dict[int, Received]:
        """Return the values as they come, a tensor each where a model may go straight to the GPU."""
        make = self._room if self._device_room is None or kind is not Kind.MODEL else self._device_room
        values: dict[int, Received] = {c: make(a.positions.count()) for c, a in addresses.items()}
        memory = {c: as_bytes(vector) for c, vector in values.items()}
        posted = [self._post(c, memory[c][4 * at : 4 * end]) for c, _, _, at, end in self._parts(addresses)]
        self._lively.wait_all(posted, "the server's model")
        return values

    def _receive_coded(
        self, addresses: dict[int, Address], codings: dict[int, ValueCoding]
    ) -> dict[int, NDArray[np.float32]]:
        """Return the values, decoded range by range."""
        values = {c: self._room(a.positions.count()) for c, a in addresses.items()}
        parts = list(self._parts(addresses))
        buffers = [np.empty(values_bound(codings[c], end - at), np.uint8) for c, _, _, at, end in parts]
        posted = [self._post(part[0], buffer) for part, buffer in zip(parts, buffers, strict=True)]
        sizes = self._lively.wait_bytes(posted, "the server's model")
        for (c, lo, hi, at, end), buffer, size in zip(parts, buffers, sizes, strict=True):
            a = addresses[c]
            values[c][at:end] = decode_range(buffer[:size], a.positions, lo, hi, codings[c], a.reference)
        return values

    def _parts(self, addresses: Mapping[int, Address]) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield client, range, and the places of its values in the message, of every part that has some."""
        for c, address in addresses.items():
            at = 0
            for lo, hi in self._cuts.ranges(address.positions.count()):
                end = at + address.positions.count(lo, hi)
                if end > at:
                    yield c, lo, hi, at, end
                at = end

    def _post(self, client: int, memory: Bytes | torch.Tensor) -> MPI.Request:
        return self._ranks.comm.Irecv([memory, MPI.BYTE], SERVER, tag(client))
