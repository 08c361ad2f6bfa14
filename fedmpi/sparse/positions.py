"""Where a mask's kept entries are: for kernels that walk over positions instead of bits.

Bits are turned into positions once for each mask, not once for each call: the search costs several copies of the dense
vector. All kernels of a process share what was found, over rounds, until the mask is gone. Masks that are equal share
it as well. Memory is bounded by `ROOM`; a mask for which there is no room is searched block by block at every call.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import RLock
from weakref import WeakValueDictionary, ref

import numpy as np
from numpy.typing import NDArray

from fedmpi.sparse.mask import Mask

__all__ = ["ROOM", "Positions", "Span", "positions"]

Places = NDArray[np.integer]

ROOM = 1 << 30
"""Bytes that positions may take in a process: eight masks of ResNet-50 at density 1 would take 0.75 of it."""
PATIENCE = 1000
"""A mask not asked for in so many requests makes room for others: several rounds of eight clients in 16 segments."""
_SEARCHED = 1 << 20


@dataclass(eq=False)
class _Entry:
    places: Places
    asked: int = 0


class Positions:
    """Positions of masks that are alive, ``room`` bytes at most."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._known: dict[int, tuple[ref[Mask], _Entry]] = {}  # by identity: masks are long to compare
        self._entries: WeakValueDictionary[bytes, _Entry] = WeakValueDictionary()  # by content
        self._requests = 0
        self._lock = RLock()  # a mask may go, and be forgotten, while another one is searched

    def of(self, mask: Mask) -> Places | None:
        """Return the kept entries' places, ascending: int32[count], int64 from 2**31 entries on; None without room."""
        with self._lock:
            self._requests += 1
            entry = self._entry(mask)
            if entry is None:
                return None
            entry.asked = self._requests
            return entry.places

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(entry.places.nbytes for entry in self._entries.values())

    def _entry(self, mask: Mask) -> _Entry | None:
        known = self._known.get(id(mask))
        if known is not None and known[0]() is mask:
            return known[1]
        entry = self._entries.get(mask.hash)
        if entry is None:
            if not self._has_room(mask.count() * width(mask).itemsize):
                return None
            entry = self._entries[mask.hash] = _Entry(search(mask))
        key = id(mask)
        self._known[key] = ref(mask, lambda gone: self._forget(key, gone)), entry
        return entry

    def _forget(self, key: int, gone: ref[Mask]) -> None:
        with self._lock:
            if key in self._known and self._known[key][0] is gone:  # else another mask has this identity by now
                del self._known[key]

    def _has_room(self, wanted: int) -> bool:
        """Drop what nobody asks for any more, if need be; whether there is room then.

        What is in use stays even if it is the oldest: masks are asked for in turn, and each would push out the next.
        """
        if wanted > self._room - self.nbytes:
            patient = self._requests - PATIENCE
            self._known = {key: known for key, known in self._known.items() if known[1].asked >= patient}
        return wanted <= self._room - self.nbytes


positions = Positions(ROOM)
"""Those of this process."""


def width(mask: Mask) -> np.dtype[np.signedinteger]:
    """Return the type of positions within a mask."""
    return np.dtype(np.int32 if mask.size < 1 << 31 else np.int64)


def search(mask: Mask) -> Places:
    """Return the positions of all kept entries."""
    out = np.empty(mask.count(), width(mask))
    end = 0
    for lo in range(0, mask.size, _SEARCHED):
        found = np.flatnonzero(mask.to_bool(lo, min(lo + _SEARCHED, mask.size)))
        np.add(found, lo, out=out[end : end + found.size], casting="same_kind")
        end += found.size
    return out


@dataclass(frozen=True)
class Span:
    """A range ``lo <= i < hi`` of a mask; ``lo`` is a multiple of 64."""

    mask: Mask
    lo: int
    hi: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.hi - self.lo

    def check(self, values: NDArray[np.float32]) -> None:
        """Raise ``ValueError`` unless there is one value for each kept entry."""
        kept = self.mask.count(self.lo, self.hi)
        if values.size != kept:
            raise ValueError(f"{values.size} values for {kept} mask bits")

    def blocks(self, step: int, scratch: NDArray[np.int32]) -> Iterator[NDArray[np.int32] | None]:
        """Yield for each ``step`` entries which of them are kept, counted from the block's start; None for all.

        ``step`` is a multiple of 64. The arrays lie in ``scratch`` (int32[step]) and are overwritten by the next block.
        """
        starts = range(self.lo, self.hi, step)
        if self.mask.is_full:
            yield from (None for _ in starts)
            return
        found = positions.of(self.mask)
        if found is None:
            for start in starts:
                places = np.flatnonzero(self.mask.to_bool(start, min(start + step, self.hi)))
                scratch[: places.size] = places
                yield scratch[: places.size]
            return
        edges = np.array([*starts, self.hi]).astype(found.dtype)  # another type would convert all positions
        cuts = np.searchsorted(found, edges).tolist()
        for start, first, last in zip(edges, cuts, cuts[1:], strict=False):
            yield np.subtract(found[first:last], start, out=scratch[: last - first], casting="same_kind")
