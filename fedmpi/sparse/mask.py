"""The mask: which entries of the flat vector are kept, one bit each.

Masks are explicit. They are never inferred from values: a zero-initialised bias is exactly 0 and kept.
"""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Self
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import WireError
from fedmpi.sparse.backend import implementation

__all__ = ["Mask"]

Words = NDArray[np.uint64]
_WORD = np.dtype("<u8")


@dataclass(frozen=True, eq=False)
class Mask:
    """An immutable set of kept entries.

    Attributes
    ----------
    words : uint64[ceil(size / 64)]
        Little-endian; bit ``i % 64`` of word ``i // 64`` is 1 where entry ``i`` is kept; bits from ``size`` on are 0.
        The array is made read-only.
    size
        Number of entries N.

    Raises
    ------
    WireError
        Wrong number or type of words, or a padding bit that is set.
    """

    words: Words
    size: int

    def __post_init__(self) -> None:
        expected = (self.size + 63) // 64
        if self.words.dtype != _WORD or self.words.shape != (expected,):
            found = f"{self.words.dtype}{list(self.words.shape)}"
            raise WireError(f"a mask of {self.size} entries has uint64[{expected}] words, got {found}")
        if self.size % 64 and int(self.words[-1]) >> (self.size % 64):
            raise WireError(f"mask bits beyond entry {self.size} are set")
        self.words.flags.writeable = False

    @staticmethod
    def full(size: int) -> "Mask":
        """Return the mask that keeps all ``size`` entries.

        While somebody holds it, it is the same one for all who ask: before the first pruning, every client's is it.
        """
        mask = _FULL.get(size)
        if mask is None:
            words = np.full((size + 63) // 64, np.iinfo(np.uint64).max, _WORD)
            if size % 64:
                words[-1] = (1 << size % 64) - 1
            mask = _FULL[size] = Mask(words, size)
        return mask

    @classmethod
    def from_bool(cls, kept: NDArray[np.bool_]) -> Self:
        """Return the mask of a bool vector (True = kept)."""
        return cls.from_bytes(np.packbits(kept, bitorder="little"), kept.size)

    @classmethod
    def from_bytes(cls, bitmap: NDArray[np.uint8], size: int) -> Self:
        """Return the mask of a bitmap, uint8[ceil(size / 8)], bit ``i % 8`` of byte ``i // 8`` for entry ``i``."""
        if bitmap.shape != ((size + 7) // 8,):
            raise WireError(f"the bitmap of {size} entries has {(size + 7) // 8} bytes, got {list(bitmap.shape)}")
        words = np.zeros((size + 63) // 64, _WORD)
        words.view(np.uint8)[: bitmap.size] = bitmap
        return cls(words, size)

    def to_bool(self, lo: int = 0, hi: int | None = None) -> NDArray[np.bool_]:
        """Return the entries ``lo <= i < hi`` as bool[hi - lo]."""
        hi = self.size if hi is None else hi
        first = lo // 8
        bits = np.unpackbits(self.bitmap[first : (hi + 7) // 8], bitorder="little")
        return bits[lo - 8 * first : hi - 8 * first].view(np.bool_)

    def count(self, lo: int = 0, hi: int | None = None) -> int:
        """Return how many of the entries ``lo <= i < hi`` are kept."""
        hi = self.size if hi is None else hi
        if (lo, hi) == (0, self.size):
            return self._total
        if lo >= hi:
            return 0
        first, last = lo // 64, (hi - 1) // 64
        inner = _count(self.words[first : last + 1])
        before = int(self.words[first]) & ((1 << lo % 64) - 1)
        after = int(self.words[last]) >> (hi - 64 * last)
        return inner - before.bit_count() - after.bit_count()

    @property
    def bitmap(self) -> NDArray[np.uint8]:
        """The bits as uint8[ceil(size / 8)], read-only view."""
        return self.words.view(np.uint8)[: (self.size + 7) // 8]

    @property
    def density(self) -> float:
        """Share kept; 1.0 for a mask without entries."""
        return self._total / self.size if self.size else 1.0

    @property
    def is_full(self) -> bool:
        """Whether all entries are kept."""
        return self._total == self.size

    @cached_property
    def _total(self) -> int:
        return _count(self.words)

    @cached_property
    def hash(self) -> bytes:
        """Sixteen bytes of blake2b over size (8 bytes) and words."""
        digest = blake2b(self.size.to_bytes(8, "little"), digest_size=16)
        digest.update(self.words.data)
        return digest.digest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self is other or (self.size == other.size and np.array_equal(self.words, other.words))

    def __hash__(self) -> int:
        return hash(self.hash)

    def __and__(self, other: "Mask") -> "Mask":
        """Return the entries kept in both."""
        return Mask(self.words & self._matching(other), self.size)

    def difference(self, other: "Mask") -> "Mask":
        """Return the entries kept here and not in ``other``."""
        return Mask(self.words & ~self._matching(other), self.size)

    def symmetric_difference(self, other: "Mask") -> "Mask":
        """Return the entries kept in exactly one of both."""
        return Mask(self.words ^ self._matching(other), self.size)

    def within(self, outer: "Mask") -> "Mask":
        """Return this mask restricted to the entries that ``outer`` keeps: entry j of the result is its j-th one."""
        self._matching(outer)
        words = np.empty((outer.count() + 63) // 64, _WORD)
        implementation().extract(self.words, outer.words, words)
        return Mask(words, outer.count())

    def spread(self, outer: "Mask") -> "Mask":
        """Return the mask over the entries of ``outer`` whose :meth:`within` it is this one.

        Raises
        ------
        WireError
            ``outer`` does not keep as many entries as this mask has.
        """
        if self.size != outer.count():
            raise WireError(f"a mask of {self.size} entries does not spread over {outer.count()} kept ones")
        words = np.empty_like(outer.words)
        implementation().deposit(self.words, outer.words, words)
        return Mask(words, outer.size)

    def _matching(self, other: "Mask") -> Words:
        if other.size != self.size:
            raise WireError(f"masks of {self.size} and {other.size} entries do not go together")
        return other.words


_FULL: WeakValueDictionary[int, Mask] = WeakValueDictionary()


def _count(words: Words) -> int:
    """Return the number of set bits."""
    total: int = implementation().count(words)
    return total
