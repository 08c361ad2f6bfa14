"""Uplink: surviving values of all clients, merged at the server range by range as they arrive.

Two steps, because the weights of the mean depend on what the heads say: ``heads`` brings mask changes, buffers and
scalars; ``merge`` moves the values. All clients' values of one parameter range are merged, in client order, while the
next range arrives: the server holds two ranges per client and nothing else, and the bits of the result depend neither
on the order of arrival nor on the number of ranks.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.scatter import check_values
from fedmpi.comm.segments import segments
from fedmpi.comm.traffic import Meter, Traffic
from fedmpi.comm.waiting import Patience
from fedmpi.sparse import Checksum, Head, Kind, Layout, Mask, decode_head, encode_head, head_bound, values_checksum
from fedmpi.sparse.header import Header
from fedmpi.sparse.kernels import merge_range


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
    ) -> None:
        self._ranks, self._layout, self._patience, self._meter = ranks, layout, patience, meter
        self._segments = segments(layout.size, segment_bytes)
        self._open: list[Traffic] = []
        self._limit, self._max_scalars = head_bound(layout, max_scalars), max_scalars

    @property
    def segments(self) -> int:
        """In how many ranges values travel."""
        return len(self._segments)

    def heads(
        self,
        kind: Kind,
        round: int,
        outgoing: Mapping[int, tuple[Head, Mask]],
        known: Mapping[int, Known],
        *,
        since: float,
    ) -> dict[int, Head]:
        """*Collective*. Bring one head of every client to the server.

        ``outgoing`` holds head and previous mask of each hosted client; ``known`` (server only) what it remembers of
        every client. Returns the heads in client order on the server, nothing elsewhere. ``since`` is the clock at the
        start of the round.

        Raises
        ------
        WireError
            On the server, when a head does not fit layout, round, sender or mask epoch.
        """
        start = time.perf_counter()
        encoded = {c: encode_head(head, self._layout, previous) for c, (head, previous) in sorted(outgoing.items())}
        if not self._ranks.is_server:
            sends = [self._ranks.comm.Isend([data, MPI.BYTE], SERVER) for data, _ in encoded.values()]
            self._patience.wait_all(sends, "the server to take the heads")
            return {}
        raw = {c: encoded[c][0] if c in encoded else self._receive_head(c) for c in self._ranks.clients}
        heads = {c: self._decode(data, kind, round, c, known[c]) for c, data in raw.items()}
        spent = time.perf_counter() - start
        headers = [Header.unpack(raw[c].data, self._layout, self._max_scalars) for c in raw]
        messages = [Traffic.of(header, start=start - since, seconds=spent) for header in headers]
        if kind is Kind.UPDATE:
            self._open = messages  # the values are still to come
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
        values: Mapping[int, NDArray[np.float32]],
        masks: Mapping[int, Mask],
        heads: Mapping[int, Head],
        weights: Mapping[int, float],
        theta: NDArray[np.float32] | None,
        *,
        skip_pruned: bool = True,
    ) -> float:
        """*Collective*. Merge all clients' values into ``theta``, in place, on the server.

        Parameters
        ----------
        values
            Surviving values of each hosted client, ``float32[nnz]``.
        masks
            Masks of this round: of every client on the server, of the hosted ones elsewhere.
        heads, weights
            Server only: what `heads` returned, and the weight of every client that takes part. The values of other
            clients are received and dropped.
        theta
            Server only: ``float32[N]``, overwritten by the weighted mean over the holders of each entry; entries that
            no client holds keep their value.
        skip_pruned
            SAS: leave pruned entries out of the mean. False counts them as zeros.

        Returns
        -------
        Seconds spent merging (0 elsewhere).

        Raises
        ------
        WireError
            On the server, when the checksum of a client's values does not match.
        """
        if theta is None:
            self._send_values(values, masks)
            return 0.0
        begin = time.perf_counter()
        merged = sorted(weights)
        shares = np.array([weights[c] for c in merged], np.float32)
        spent, sums, at = 0.0, dict.fromkeys(self._ranks.clients, Checksum()), dict.fromkeys(self._ranks.clients, 0)
        for (lo, hi), arrived in zip(self._segments, self._arrivals(values, masks), strict=True):
            start = time.perf_counter()
            for c, part in arrived.items():
                sums[c] = sums[c].combine(values_checksum(part, at[c]))
                at[c] += part.size
            old = theta[lo:hi]
            merge_range(
                old,
                [arrived[c] for c in merged],
                [masks[c] for c in merged],
                shares,
                lo,
                hi,
                old,
                skip_pruned=skip_pruned,
            )
            spent += time.perf_counter() - start
        for c, found in sums.items():
            check_values(found, heads[c], f"the update of client {c}")
        elapsed = time.perf_counter() - begin
        self._meter.add(replace(message, seconds=message.seconds + elapsed) for message in self._open)
        self._open = []
        return spent

    def _send_values(self, values: Mapping[int, NDArray[np.float32]], masks: Mapping[int, Mask]) -> None:
        comm, at, sends = self._ranks.comm, dict.fromkeys(sorted(values), 0), []
        for lo, hi in self._segments:
            for c, done in at.items():
                count = masks[c].count(lo, hi)
                if count:
                    sends.append(comm.Isend(values[c][done : done + count], SERVER))
                    at[c] = done + count
        self._patience.wait_all(sends, "the server to take the updates")

    def _arrivals(
        self, values: Mapping[int, NDArray[np.float32]], masks: Mapping[int, Mask]
    ) -> Iterator[dict[int, NDArray[np.float32]]]:
        """Yield every client's values range by range; the next range arrives while the caller works on this one."""
        at = dict.fromkeys(values, 0)
        arriving = self._post(0, masks, values, at)
        for s in range(len(self._segments)):
            following = self._post(s + 1, masks, values, at)
            for client, (_, request) in arriving.items():
                if request is not None:
                    host = self._ranks.hosts[client]
                    self._patience.wait(request, f"the values of client {client} on rank {host}")
            yield {client: part for client, (part, _) in arriving.items()}
            arriving = following

    def _post(
        self, s: int, masks: Mapping[int, Mask], values: Mapping[int, NDArray[np.float32]], at: dict[int, int]
    ) -> dict[int, tuple[NDArray[np.float32], MPI.Request | None]]:
        """Start receiving range ``s`` of every client; the clients of this rank are read in place."""
        posted: dict[int, tuple[NDArray[np.float32], MPI.Request | None]] = {}
        for c in self._ranks.clients if s < len(self._segments) else ():
            count = masks[c].count(*self._segments[s])
            if c in values:
                posted[c] = values[c][at[c] : at[c] + count], None
                at[c] += count
            else:
                buffer = np.empty(count, np.float32)
                posted[c] = buffer, self._ranks.comm.Irecv(buffer, self._ranks.hosts[c]) if count else None
        return posted
