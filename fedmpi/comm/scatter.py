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

from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.segments import segments
from fedmpi.comm.traffic import Meter, Traffic
from fedmpi.comm.waiting import Patience
from fedmpi.errors import WireError
from fedmpi.sparse import Checksum, Head, Kind, Layout, Mask, decode_head, encode_head, head_bound, values_checksum
from fedmpi.sparse.header import Header
from fedmpi.sparse.kernels import pack


@dataclass(frozen=True)
class Address:
    """Which positions one client receives, and the epoch of the mask that says so (both ends know both)."""

    positions: Mask
    epoch: int


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
    """

    def __init__(self, ranks: Ranks, layout: Layout, *, segment_bytes: int, patience: Patience, meter: Meter) -> None:
        self._ranks, self._layout, self._patience, self._meter = ranks, layout, patience, meter
        self._segments = segments(layout.size, segment_bytes)

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
        heads = {c: self._head(kind, round, c, a, theta, buffers) for c, a in addresses.items()}
        local = {c: a for c, a in addresses.items() if self._ranks.hosts[c] == SERVER}
        self._send_away(theta, {c: a for c, a in addresses.items() if c not in local}, heads)
        parcels = {c: Parcel(pack(theta, a.positions, 0, theta.size), buffers.copy()) for c, a in local.items()}
        spent = time.perf_counter() - start
        headers = [Header.unpack(head.data, self._layout, 0) for head in heads.values()]
        self._meter.add(Traffic.of(header, start=start - since, seconds=spent) for header in headers)
        return parcels

    def _head(
        self,
        kind: Kind,
        round: int,
        client: int,
        address: Address,
        theta: NDArray[np.float32],
        buffers: NDArray[np.float32],
    ) -> NDArray[np.uint8]:
        head = Head(
            kind=kind,
            round=round,
            client=client,
            base_epoch=address.epoch,
            epoch=address.epoch,
            mask=address.positions,
            buffers=buffers,
            values_checksum=self._checksum(theta, address.positions),
            segments=len(self._segments),
        )
        return encode_head(head, self._layout, previous=address.positions)[0]

    def _checksum(self, theta: NDArray[np.float32], positions: Mask) -> Checksum:
        """Return the checksum of the values to come; packing twice costs less than holding them all."""
        total, at = Checksum(), 0
        for lo, hi in self._segments:
            values = pack(theta, positions, lo, hi)
            total = total.combine(values_checksum(values, at))
            at += values.size
        return total

    def _send_away(
        self,
        theta: NDArray[np.float32],
        away: dict[int, Address],
        heads: dict[int, NDArray[np.uint8]],
    ) -> None:
        """Send heads, then the values range by range; at most two ranges are in flight, so memory stays small."""
        hosts, comm = self._ranks.hosts, self._ranks.comm
        before = {c: comm.Isend([heads[c], MPI.BYTE], hosts[c]) for c in away}
        for lo, hi in self._segments:
            packed = {c: pack(theta, address.positions, lo, hi) for c, address in away.items()}
            now = {c: comm.Isend(values, hosts[c]) for c, values in packed.items() if values.size}
            self._wait_for_takers(before)
            before = now
        self._wait_for_takers(before)

    def _wait_for_takers(self, sends: Mapping[int, MPI.Request]) -> None:
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
        self._patience.wait_all(self._post(addresses, values), "the server's model")
        for c, received in values.items():
            check_values(values_checksum(received), heads[c], f"the model for client {c}")
        return {c: Parcel(values[c], heads[c].buffers) for c in addresses}

    def _post(self, addresses: dict[int, Address], values: dict[int, NDArray[np.float32]]) -> list[MPI.Request]:
        """Post all receives in the order of the server's sends: range by range, clients ascending."""
        comm, at, requests = self._ranks.comm, dict.fromkeys(addresses, 0), []
        for lo, hi in self._segments:
            for c, address in addresses.items():
                count = address.positions.count(lo, hi)
                if count:
                    requests.append(comm.Irecv(values[c][at[c] : at[c] + count], SERVER))
                    at[c] += count
        return requests


def check_values(found: Checksum, head: Head, what: str) -> None:
    """Raise ``WireError`` when the values that came do not have the checksum that was announced. *Not collective.*"""
    if found != head.values_checksum:
        message = f"{what}: the checksum of {head.nnz} values does not match; they were damaged on the way"
        raise WireError(message)
