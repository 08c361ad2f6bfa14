"""Golomb coding of increasing positions, vectorised.

A position is coded as the gap to its predecessor (S. W. Golomb, "Run-length encodings", 1966): the quotient of the gap
by ``m`` in unary, the remainder in truncated binary. For independent bits and the best ``m`` that is within 0.9 % of
the entropy up to a third of ones; Rice coding, its special case of ``m`` a power of two, is within 2.4 %.

Each part has its own stream of bits, which is what lets NumPy code them without a loop over positions.
"""

from collections.abc import Callable
from math import ceil, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import WireError

__all__ = ["GolombPlan", "decode", "encode", "plan"]

Positions = NDArray[np.int64]
_SAMPLE = 1 << 14


class GolombPlan(NamedTuple):
    """A parameter and the exact sizes that follow from it."""

    m: int
    unary_bytes: int
    size: int  # bytes of all three streams


def plan(positions: Positions, size: int) -> GolombPlan:
    """Choose ``m`` for ``positions`` (int64[c], increasing, c >= 1) out of ``size`` entries, without encoding.

    The candidates are the optimum of independent bits (Gallager and van Voorhis, 1975) and, for positions that come in
    clusters, smaller ones; they are compared on a sample of the gaps.
    """
    gaps = _gaps(positions)
    share = min(positions.size / size, 0.999)
    best = max(ceil(-log(2 - share) / log(1 - share)), 1)
    sample = gaps[:: 1 + gaps.size // _SAMPLE]
    candidates = {best, ceil(best / 2), ceil(best / 4)}
    return _plan(gaps, min(candidates, key=lambda m: (_plan(sample, m).size, m)))


def encode(positions: Positions, m: int) -> bytes:
    """Return three streams of bits, each filling bytes from the lowest bit on and padded with zeros.

    1. Unary: for each gap, ``gap // m`` zeros and a one.
    2. Leading bits of the remainders. With ``b = ceil(log2 m)`` and ``cut = 2^b - m``, a remainder below ``cut`` is
       sent as it is in ``b - 1`` bits, any other plus ``cut`` in ``b`` bits. The stream has ``b - 1`` rows of one bit
       per gap, the row of the lowest of these bits first.
    3. The last bits of those remainders that have ``b``.
    """
    quotients, remainders = _divide(_gaps(positions), m)
    ends = np.cumsum(quotients + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, np.bool_)
    unary[ends] = True
    rows, cut = _truncated(m)
    long = remainders >= cut
    codes = np.where(long, remainders + cut, remainders << 1)
    leading = np.empty((rows, codes.size), np.bool_)
    for row in range(rows):
        leading[row] = (codes >> (row + 1)) & 1
    last = (codes[long] & 1).astype(np.bool_) if m > 1 else np.empty(0, np.bool_)
    return _packed(unary) + _packed(leading.ravel()) + _packed(last)


def decode(take: Callable[[int], memoryview], unary_bytes: int, count: int, m: int, size: int) -> Positions:
    """Return the ``count`` (>= 1) positions below ``size`` that the next bytes code.

    Parameters
    ----------
    take
        Returns the next so many bytes.

    Raises
    ------
    WireError
        The streams do not hold exactly ``count`` increasing positions below ``size``, or padding bits are set.
    """
    unary = np.unpackbits(np.frombuffer(take(unary_bytes), np.uint8), bitorder="little")
    ends = np.flatnonzero(unary.view(np.bool_))
    if ends.size != count or ends[-1] // 8 != unary_bytes - 1:
        raise WireError(f"mask section ends {ends.size} codes in {unary_bytes} bytes, {count} positions were announced")
    gaps = np.diff(ends, prepend=-1) - 1
    if int(gaps.max()) > size // m:
        raise WireError(f"mask section has a gap of {int(gaps.max()) * m} or more, the tensor has {size} entries")
    gaps *= m
    gaps += _remainders(take, count, m)
    positions = np.cumsum(gaps + 1) - 1
    if positions[-1] >= size:
        raise WireError(f"mask section reaches position {positions[-1]}, the tensor has {size} entries")
    return positions


def _plan(gaps: Positions, m: int) -> GolombPlan:
    quotients, remainders = _divide(gaps, m)
    rows, cut = _truncated(m)
    unary_bytes = -(-(int(quotients.sum()) + gaps.size) // 8)
    long = int(np.count_nonzero(remainders >= cut)) if m > 1 else 0
    return GolombPlan(m, unary_bytes, unary_bytes + -(-rows * gaps.size // 8) + -(-long // 8))


def _remainders(take: Callable[[int], memoryview], count: int, m: int) -> Positions:
    rows, cut = _truncated(m)
    remainders = np.zeros(count, np.int64)
    for row, ones in enumerate(_unpacked(take, rows * count).reshape(rows, count)):
        remainders |= ones.astype(np.int64) << row
    if m > 1:
        long = np.flatnonzero(remainders >= cut)
        remainders[long] += remainders[long] + _unpacked(take, long.size) - cut
    return remainders


def _truncated(m: int) -> tuple[int, int]:
    """Return how many leading bits each remainder has, and the first remainder that has a last bit as well."""
    bits = (m - 1).bit_length()
    return max(bits - 1, 0), (1 << bits) - m


def _divide(gaps: Positions, m: int) -> tuple[Positions, Positions]:
    quotients = gaps // m
    return quotients, gaps - quotients * m


def _gaps(positions: Positions) -> Positions:
    return np.diff(positions, prepend=-1) - 1


def _packed(bits: NDArray[np.bool_]) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def _unpacked(take: Callable[[int], memoryview], count: int) -> NDArray[np.uint8]:
    bits = np.unpackbits(np.frombuffer(take(-(-count // 8)), np.uint8), bitorder="little")
    if bits[count:].any():
        raise WireError(f"mask section has padding that is not zero after {count} low bits")
    return bits[:count]
