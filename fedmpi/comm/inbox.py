"""One client's values on their way to where they are merged, part by part."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.comm.ranks import Ranks
from fedmpi.comm.segments import UNDER_WAY, Range
from fedmpi.comm.shared import SharedUpdates
from fedmpi.comm.traffic import Meter
from fedmpi.comm.waiting import Patience
from fedmpi.sparse import Mask, ValueCoding, decode_range, values_bound

Values = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def address(ranks: Ranks, client: int) -> tuple[int, int, str]:
    """Return where a client's values come from, under which tag, and what to call them. *Not collective.*"""
    return ranks.hosts[client], tag(client), f"the values of client {client} on rank {ranks.hosts[client]}"


def tag(client: int) -> int:
    """Return the tag of a client's values: clients of one rank are received apart; heads have tag 0."""
    return 1 + client


@dataclass(frozen=True)
class Contents:
    """What a client's values are.

    Attributes
    ----------
    ranges
        Of its parts, ascending.
    mask, coding
        Of its update.
    reference
        ``float32[N]`` that lossless values are coded against, needed up to the end of a part from when its first range
        is taken on.
    """

    ranges: tuple[Range, ...]
    mask: Mask
    coding: ValueCoding
    reference: Values | None


class Stream(ABC):
    """The values of one client, taken range by range, ascending; a range must not cross the border of a part."""

    def __init__(self, contents: Contents, meter: Meter) -> None:
        self._contents, self._meter = contents, meter
        self._ranges = iter(contents.ranges)
        self._values, self._used, self._end = np.empty(0, np.float32), 0, 0
        self.bytes = 0

    def take(self, lo: int, hi: int) -> Values:
        """Return the values of a range, a view that holds until a range of the next part is taken. *Not collective.*

        Raises
        ------
        WireError
            They do not decode.
        """
        if lo >= self._end:
            self._begin(*next(self._ranges))
        count = self._contents.mask.count(lo, hi)
        taken = self._values[self._used : self._used + count]
        self._used += count
        return taken

    def _begin(self, lo: int, hi: int) -> None:
        what, data = self._contents, self._fetch()
        self.bytes += data.size
        with self._meter.time("decode"):
            self._values = decode_range(data, what.mask, lo, hi, what.coding, what.reference)
        self._used, self._end = 0, hi

    @property
    def under_way(self) -> list[object]:
        """What a late message may still write into."""
        return []

    @abstractmethod
    def _fetch(self) -> Bytes:
        """Return the next part."""


class Own(Stream):
    """The values of a client of this very rank, coded and decoded like those of others.

    ``data`` yields the parts.
    """

    def __init__(self, data: Iterator[Bytes], contents: Contents, meter: Meter) -> None:
        super().__init__(contents, meter)
        self._data = data

    def _fetch(self) -> Bytes:
        return next(self._data)


class Inbox(Stream):
    """Values from another rank. Its memory is that of two parts: one arrives while one is in use.

    ``address`` is their rank, their tag, and what an error calls them.
    """

    def __init__(
        self, comm: MPI.Comm, address: tuple[int, int, str], contents: Contents, patience: Patience, meter: Meter
    ) -> None:
        super().__init__(contents, meter)
        self._comm, self._patience = comm, patience
        self._source, self._tag, self._what = address
        counts = [contents.mask.count(lo, hi) for lo, hi in contents.ranges]
        bound = values_bound(contents.coding, max(counts, default=0))
        self._counts = iter(counts)
        self._posted: deque[tuple[Bytes, MPI.Request | None]] = deque()
        for _ in range(UNDER_WAY):
            self._post(np.empty(bound, np.uint8))
        self._held: Bytes | None = None

    @property
    def under_way(self) -> list[object]:
        """Requests, which hold their buffers."""
        return [request for _, request in self._posted]

    def _post(self, buffer: Bytes) -> None:
        """Start to receive the next part, if there is one; a part without values is no message."""
        count = next(self._counts, None)
        if count is None:
            return
        part = buffer[: values_bound(self._contents.coding, count)]
        request = self._comm.Irecv([part, MPI.BYTE], self._source, self._tag) if count else None
        self._posted.append((buffer, request))

    def _fetch(self) -> Bytes:
        if self._held is not None:
            self._post(self._held)
        self._held, request = self._posted.popleft()
        if request is None:
            return self._held[:0]
        with self._meter.time("transfer"):
            return self._held[: self._patience.wait_bytes([request], self._what)[0]]


class Laid(Stream):
    """The values of a client that lays them down in shared memory, raw, and says so in an empty message."""

    def __init__(
        self, memory: SharedUpdates, ranks: Ranks, client: int, mask: Mask, patience: Patience, meter: Meter
    ) -> None:
        super().__init__(Contents(((0, mask.size),), mask, ValueCoding.RAW_F32, None), meter)
        self._memory, self._client, self._patience = memory, client, patience
        self._source = ranks.hosts[client]
        self._said = ranks.comm.Irecv([bytearray(), MPI.BYTE], self._source, tag(client))

    @property
    def under_way(self) -> list[object]:
        """The message that says so."""
        return [self._said]

    def _fetch(self) -> Bytes:
        with self._meter.time("transfer"):
            self._patience.wait(self._said, f"the values of client {self._client} on rank {self._source}")
        return self._memory.read(self._client, self._contents.mask.count()).view(np.uint8)
