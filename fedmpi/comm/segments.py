"""Parts in which values travel: ranges of parameters, sized by what a client keeps of them.

Messages of a good part of a megabyte move faster per byte than one of a hundred, let the server merge one range while
the next arrives, and never meet MPI's 2^31 limits.
"""

from dataclasses import dataclass
from itertools import pairwise

WORD = 64  # masks are packed in 64-bit words; ranges start at word borders
MAX_SEGMENT_BYTES = 64 << 20
SHORTEST = 1 << 16
"""Bytes of a part below which messages cost more than what they carry."""
UNDER_WAY = 2
"""Parts of a client that the server holds at once: one is merged while the next arrives."""
SPARSEST = 10
"""A part covers at most 2**10 times the parameters of a dense one."""

Range = tuple[int, int]


@dataclass(frozen=True)
class Cuts:
    """How the values of any client are cut, so that those under way fill a quarter of a dense vector, not more.

    A dense client's part covers ``step(size)`` parameters; one that keeps less takes 2, 4, 8 ... times as many, so that
    its parts have at least half the bytes, and all clients' ranges start where the finest ones do. Both ends compute
    this from the number of values alone. Any cuts give the same bits of the mean.

    Attributes
    ----------
    size, clients
        Parameters, and clients of the run.
    fixed
        Bytes of every range when dense, for all clients alike, in place of all that.
    """

    size: int
    clients: int
    fixed: int | None = None

    def step(self, nnz: int) -> int:
        """Return how many parameters a part covers for a client that keeps ``nnz``."""
        if self.fixed is not None:
            return _words(min(self.fixed, MAX_SEGMENT_BYTES))
        part = self.size // (UNDER_WAY * max(self.clients, 1))  # a quarter of 4 size bytes, shared by all
        dense = _words(min(max(part, SHORTEST), MAX_SEGMENT_BYTES))
        sparse = (self.size // nnz).bit_length() - 1 if nnz else SPARSEST
        return dense << min(max(sparse, 0), SPARSEST)

    def ranges(self, nnz: int) -> tuple[Range, ...]:
        """Return the ranges (lo, hi) of such a client's parts; they cover all parameters, ascending."""
        return cut(0, self.size, self.step(nnz))

    def count(self, nnz: int) -> int:
        """Return the number of these ranges."""
        return -(-self.size // self.step(nnz))


def cut(lo: int, hi: int, step: int) -> tuple[Range, ...]:
    """Return ranges of ``step`` parameters, the last one excepted, that cover ``lo <= i < hi``."""
    return tuple(pairwise([*range(lo, hi, step), hi])) if hi > lo else ()


def segments(size: int, segment_bytes: int) -> tuple[Range, ...]:
    """Return ranges that cover ``size`` float32 parameters, each at most ``segment_bytes`` when dense."""
    return cut(0, size, _words(min(segment_bytes, MAX_SEGMENT_BYTES)))


def _words(size: int) -> int:
    """Return how many whole words' parameters take at most ``size`` bytes, but at least one word's."""
    return max(WORD, size // 4 // WORD * WORD)
