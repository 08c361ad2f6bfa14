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
from fedmpi.comm.traffic import Direction, Meter, Traffic
from fedmpi.comm.waiting import Patience
from fedmpi.errors import WireError
from fedmpi.sparse import Checksum, Head, Kind, Layout, Mask, SectionSizes, decode_head, encode_head, max_head_bytes, pack

DIRECTIONS = {Kind.MODEL: Direction.DOWN, Kind.RECOVERED: Direction.RECOVER, Kind.EVALUATION: Direction.EVALUATE}


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
        local = {c: a for c, a in addresses.items() if self._ranks.hosts[c] == SERVER}
        away = {c: a for c, a in addresses.items() if c not in local}
        heads = {c: self._head(kind, round, c, a, buffers) for c, a in addresses.items()}
        self._send_away(theta, away, {c: heads[c][0] for c in away})
        parcels = {c: Parcel(pack(theta, a.positions, 0, theta.size), buffers.copy()) for c, a in local.items()}
        spent = time.perf_counter() - start
        self._meter.add(
            self._traffic(kind, round, c, heads[c][1], a, start - since, spent) for c, a in addresses.items()
        )
        return parcels

    def _head(
        self, kind: Kind, round: int, client: int, address: Address, buffers: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], SectionSizes]:
        head = Head(
            kind=kind,
            round=round,
            client=client,
            base_epoch=address.epoch,
            epoch=address.epoch,
            mask=address.positions,
            buffers=buffers,
            scalars=np.empty(0),
        )
        return encode_head(head, self._layout, previous=address.positions)

    def _send_away(
        self, theta: NDArray[np.float32], away: dict[int, Address], heads: dict[int, NDArray[np.uint8]]
    ) -> None:
        """Send heads, then the values range by range; at most two ranges are in flight, so memory stays small."""
        hosts, comm = self._ranks.hosts, self._ranks.comm
        before: list[MPI.Request] = [comm.Isend([heads[c], MPI.BYTE], hosts[c]) for c in away]
        sums = {c: Checksum() for c in away}
        for lo, hi in self._segments:
            now: list[MPI.Request] = []
            for c, address in away.items():
                values = pack(theta, address.positions, lo, hi)
                sums[c].update(values)
                if values.size:
                    now.append(comm.Isend(values, hosts[c]))
            self._patience.wait_all(before, "clients to take the model")
            before = now
        before += [comm.Isend([sums[c].digest(), MPI.BYTE], hosts[c]) for c in away]
        self._patience.wait_all(before, "clients to take the model")

    def _receive(self, kind: Kind, round: int, addresses: dict[int, Address]) -> dict[int, Parcel]:
        comm, limit = self._ranks.comm, max_head_bytes(self._layout)
        heads = {
            c: decode_head(
                self._patience.receive_bytes(comm, SERVER, limit, f"the model for client {c}"),
                self._layout,
                kind=kind,
                round=round,
                client=c,
                epoch=a.epoch,
                previous=a.positions,
            )
            for c, a in addresses.items()
        }
        values = {c: np.empty(a.positions.count(), np.float32) for c, a in addresses.items()}
        trailers = {c: np.empty(Checksum.BYTES, np.uint8) for c in addresses}
        self._patience.wait_all(self._post(addresses, values, trailers), "the server's model")
        for c, received in values.items():
            check_values(received, trailers[c], f"the model for client {c}")
        return {c: Parcel(values[c], heads[c].buffers) for c in addresses}

    def _post(
        self,
        addresses: dict[int, Address],
        values: dict[int, NDArray[np.float32]],
        trailers: dict[int, NDArray[np.uint8]],
    ) -> list[MPI.Request]:
        """Post all receives in the order of the server's sends: range by range, clients ascending."""
        comm, at, requests = self._ranks.comm, dict.fromkeys(addresses, 0), []
        for lo, hi in self._segments:
            for c, address in addresses.items():
                count = address.positions.count(lo, hi)
                if count:
                    requests.append(comm.Irecv(values[c][at[c] : at[c] + count], SERVER))
                    at[c] += count
        return requests + [comm.Irecv([trailers[c], MPI.BYTE], SERVER) for c in addresses]

    def _traffic(
        self, kind: Kind, round: int, client: int, sizes: SectionSizes, address: Address, start: float, seconds: float
    ) -> Traffic:
        full = address.positions.size if kind is not Kind.RECOVERED else 0
        return Traffic(
            round=round,
            client=client,
            direction=DIRECTIONS[kind],
            header=sizes.header + Checksum.BYTES,
            mask=sizes.mask,
            values=4 * address.positions.count(),
            buffers=sizes.buffers,
            scalars=sizes.scalars,
            dense=(sizes.header + Checksum.BYTES + sizes.buffers + sizes.scalars + 4 * full) if full else 0,
            mask_mode=sizes.mask_mode,
            start=start,
            seconds=seconds,
        )


def check_values(values: NDArray[np.float32], trailer: NDArray[np.uint8], what: str) -> None:
    """Raise ``WireError`` when the checksum that followed ``values`` is not theirs. *Not collective.*"""
    checksum = Checksum()
    checksum.update(values)
    if checksum.digest().tobytes() != trailer.tobytes():
        message = f"{what}: the checksum of {values.size} values does not match; they were damaged on the way"
        raise WireError(message)
