"""Shares of the parameters, one per rank, and what an owner must know of a client's values before they come."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from struct import Struct
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm.segments import WORD, Range
from fedmpi.errors import WireError
from fedmpi.sparse import Mask

_FORMAT = Struct("<QQQ16s")
NOTICE_BYTES = _FORMAT.size


def shares(size: int, ranks: int) -> list[Range]:
    """Return the range of each rank, whole words of a mask; the last ones may be shorter or empty."""
    step = -(-size // (ranks * WORD)) * WORD
    return [(min(rank * step, size), min((rank + 1) * step, size)) for rank in range(ranks)]


def parted(mask: Mask, lo: int, hi: int) -> Mask:
    """Return the part of a mask, ``lo`` a multiple of 64, ``hi`` as well or the end."""
    return mask if (lo, hi) == (0, mask.size) else Mask(mask.words[lo // WORD : -(-hi // WORD)], hi - lo)


def union(masks: Iterable[Mask], size: int) -> Mask:
    """Return what any of the masks keeps, of ``size`` entries."""
    words = [mask.words for mask in masks]
    return Mask(reduce(np.bitwise_or, words), size) if words else Mask.from_bool(np.zeros(size, np.bool_))


def changed(new: Mask, old: Mask) -> int:
    """Return how many bytes tell a part of a mask to who remembers the old one."""
    return 0 if new == old else new.bitmap.size


@dataclass(frozen=True)
class Notice:
    """What comes before a client's values for one owner.

    Attributes
    ----------
    before, total
        How many values of the message stand before the share, and in all.
    hash
        Of the share's part of the mask.
    bitmap
        That part; empty when it is the one that the owner remembers.
    """

    before: int
    total: int
    hash: bytes
    bitmap: NDArray[np.uint8]

    @classmethod
    def of(cls, before: int, total: int, part: Mask, announced: Mask) -> Self:
        """Return the notice of a part of a mask, when another one was announced last."""
        return cls(before, total, part.hash, part.bitmap[: changed(part, announced)])

    def pack(self) -> bytes:
        """Return the bytes."""
        fixed = _FORMAT.pack(self.before, self.total, self.bitmap.size, self.hash)
        return fixed + self.bitmap.tobytes()

    @classmethod
    def unpack(cls, data: NDArray[np.uint8], size: int, what: str) -> Self:
        """Check and return a notice of a vector of ``size`` parameters; ``WireError`` begins with ``what``."""
        if data.size < NOTICE_BYTES:
            raise WireError(f"{what}: a notice has {NOTICE_BYTES} bytes or more, got {data.size}")
        before, total, length, digest = _FORMAT.unpack(data[:NOTICE_BYTES].tobytes())
        if length != data.size - NOTICE_BYTES or not before <= total <= size:
            raise WireError(f"{what}: a notice of {before} of {total} values and {length} bytes of mask does not fit")
        return cls(before, total, digest, data[NOTICE_BYTES:])

    def mask(self, remembered: Mask, what: str) -> Mask:
        """Return the part of the mask, which must have the hash that is told."""
        part = Mask.from_bytes(self.bitmap, remembered.size) if self.bitmap.size else remembered
        if part.hash != self.hash:
            raise WireError(f"{what}: its mask comes out with hash {part.hash.hex()}, it says {self.hash.hex()}")
        return part
