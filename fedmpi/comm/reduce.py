"""Uplink: surviving values of all clients, merged at the server range by range as they arrive.

Two steps, because the weights of the mean depend on what the heads say: ``heads`` brings mask changes, buffers and
scalars; ``merge`` moves the values. All clients' values of one parameter range are merged, in client order, while the next
range arrives: the server holds two ranges per client and nothing else, and the bits of the result depend neither on the
order of arrival nor on the number of ranks.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.scatter import check_values
from fedmpi.comm.segments import segments
from fedmpi.comm.traffic import Direction, Meter, Traffic
from fedmpi.comm.waiting import Patience
from fedmpi.errors import WireError
from fedmpi.sparse import Checksum, Head, Kind, Layout, Mask, SectionSizes, decode_head, encode_head, max_head_bytes, merge_range


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
        self._limit = max_head_bytes(layout, max_scalars)
        self._started: dict[int, tuple[float, SectionSizes]] = {}

    def heads(
        self,
        kind: Kind,
        round: int,
        outgoing: Mapping[int, tuple[Head, Mask]],
        known: Mapping[int, Known],
    ) -> dict[int, tuple[Head, SectionSizes]]:
        """*Collective*. Bring one head of every client to the server.

        ``outgoing`` holds head and previous mask of each hosted client; ``known`` (server only) what it remembers of
        every client. Returns the heads in client order on the server, nothing elsewhere.

        Raises
        ------
        WireError
            On the server, when a head does not fit layout, round, sender or mask epoch.
        """
        encoded = {c: encode_head(head, self._layout, previous) for c, (head, previous) in sorted(outgoing.items())}
        if not self._ranks.is_server:
            sends = [self._ranks.comm.Isend([data, MPI.BYTE], SERVER) for data, _ in encoded.values()]
            self._patience.wait_all(sends, "the server to take the heads")
            return {}
        received: dict[int, tuple[Head, SectionSizes]] = {}
        for c in self._ranks.clients:
            data = encoded[c][0] if c in encoded else self._receive_head(c)
            received[c] = decode_head_sized(data, self._layout, kind, round, c, known[c])
        return received

    def _receive_head(self, client: int) -> NDArray[np.uint8]:
        host = self._ranks.hosts[client]
        return self._patience.receive_bytes(self._ranks.comm, host, self._limit, f"client {client} on rank {host}")

    def merge(
        self,
        values: Mapping[int, NDArray[np.float32]],
        masks: Mapping[int, Mask],
        merged: Sequence[int],
        weights: NDArray[np.float32] | None,
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
        merged, weights
            Server only: the clients that take part, ascending, and their weights ``float32[len(merged)]``. The values of
            other clients are received and dropped.
        theta
            Server only: ``float32[N]``, overwritten by the weighted mean over the holders of each entry; entries that no
            client holds keep their value.
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
        if theta is None or weights is None:
            self._send_values(values, masks)
            return 0.0

        def mean(arrived: dict[int, NDArray[np.float32]], lo: int, hi: int) -> None:
            merge_range(
                theta[lo:hi],
                [arrived[c] for c in merged],
                [masks[c] for c in merged],
                weights,
                lo,
                hi,
                theta[lo:hi],
                skip_pruned=skip_pruned,
            )

        return self._stream(values, masks, mean)

    def _send_values(self, values: Mapping[int, NDArray[np.float32]], masks: Mapping[int, Mask]) -> None:
        comm, at, sends = self._ranks.comm, dict.fromkeys(sorted(values), 0), []
        for lo, hi in self._segments:
            for c, done in at.items():
                count = masks[c].count(lo, hi)
                if count:
                    sends.append(comm.Isend(values[c][done : done + count], SERVER))
                    at[c] = done + count
        for c in at:
            checksum = Checksum()
            checksum.update(values[c])
            sends.append(comm.Isend([checksum.digest(), MPI.BYTE], SERVER))
        self._patience.wait_all(sends, "the server to take the updates")

    def _stream(
        self,
        values: Mapping[int, NDArray[np.float32]],
        masks: Mapping[int, Mask],
        consume: Callable[[dict[int, NDArray[np.float32]], int, int], None],
    ) -> float:
        """Receive range s + 1 while ``consume`` works on range s; return the seconds spent in ``consume``."""
        spent, sums = 0.0, {c: Checksum() for c in self._ranks.clients if c not in values}
        at = dict.fromkeys(values, 0)
        arriving = self._post(0, masks, values, at)
        for s, (lo, hi) in enumerate(self._segments):
            following = self._post(s + 1, masks, values, at)
            arrived = {c: self._finish(c, *item) for c, item in arriving.items()}
            for c, checksum in sums.items():
                checksum.update(arrived[c])
            start = time.perf_counter()
            consume(arrived, lo, hi)
            spent += time.perf_counter() - start
            arriving = following
        self._check(sums)
        return spent

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

    def _finish(self, client: int, buffer: NDArray[np.float32], request: MPI.Request | None) -> NDArray[np.float32]:
        if request is not None:
            self._patience.wait(request, f"the values of client {client} on rank {self._ranks.hosts[client]}")
        return buffer

    def _check(self, sums: dict[int, "Checksum"]) -> None:
        trailers = {c: np.empty(Checksum.BYTES, np.uint8) for c in sums}
        for c, trailer in trailers.items():
            self._finish(c, trailer, self._ranks.comm.Irecv([trailer, MPI.BYTE], self._ranks.hosts[c]))
        for c, checksum in sums.items():
            if checksum.digest().tobytes() != trailers[c].tobytes():
                message = f"client {c}: the checksum of its values does not match; they were damaged on the way"
                raise WireError(message)
