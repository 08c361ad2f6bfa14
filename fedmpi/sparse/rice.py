"""Rice coding of increasing positions, vectorised.

A position is coded as the gap to its predecessor; a gap's high part in unary and its ``k`` low bits as they are. The
two parts are kept in separate streams (unary bits, then rows of low bits), which is what lets NumPy code them without a
loop.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import WireError

__all__ = ["MAX_K", "RicePlan", "decode", "encode", "plan"]

MAX_K = 31
Positions = NDArray[np.int64]


class RicePlan(NamedTuple):
    """The best parameter for given positions and the exact sizes that follow from it."""

    k: int
    unary_bytes: int
    low_bytes: int

    @property
    def size(self) -> int:
        """Bytes of both streams."""
        return self.unary_bytes + self.low_bytes


def plan(positions: Positions, size: int) -> RicePlan:
    """Choose ``k`` for ``positions`` (int64[c], increasing, c >= 1) out of ``size`` entries, without encoding.

    The candidates are the neighbours of log2(mean gap): outside them no distribution of gaps of that mean is shorter by
    more than the padding.
    """
    gaps = _gaps(positions)
    mean_bits = max(size // positions.size, 1).bit_length()
    candidates = range(max(mean_bits - 3, 0), min(mean_bits, MAX_K) + 1)
    return min((_sizes(gaps, k) for k in candidates), key=lambda sizes: (sizes.size, sizes.k))


def encode(positions: Positions, k: int) -> bytes:
    """Return the unary stream followed by the low bits, each padded with zero bits to a byte.

    Unary: for each gap, ``gap >> k`` zeros and a one. Low bits: ``k`` rows of one bit per gap, the lowest bit first.
    Bits fill bytes from the lowest bit on.
    """
    gaps = _gaps(positions)
    ends = np.cumsum((gaps >> k) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, np.bool_)
    unary[ends] = True
    rows = np.empty((k, gaps.size), np.bool_)
    for bit in range(k):
        rows[bit] = (gaps >> bit) & 1
    return np.packbits(unary, bitorder="little").tobytes() + np.packbits(rows.ravel(), bitorder="little").tobytes()


def decode(data: memoryview, unary_bytes: int, count: int, k: int, size: int) -> Positions:
    """Return the ``count`` (>= 1) positions below ``size`` that ``data`` codes.

    Raises
    ------
    WireError
        The streams do not hold exactly ``count`` increasing positions below ``size``, or padding bits are set.
    """
    unary = np.unpackbits(np.frombuffer(data[:unary_bytes], np.uint8), bitorder="little")
    ends = np.flatnonzero(unary.view(np.bool_))
    if ends.size != count or ends[-1] // 8 != unary_bytes - 1:
        raise WireError(f"Rice stream ends {ends.size} codes in {unary_bytes} bytes, {count} positions were announced")
    gaps = np.diff(ends, prepend=-1) - 1
    if int(gaps.max()) > size >> k:
        raise WireError(f"Rice stream has a gap of more than {int(gaps.max()) << k}, the tensor has {size} entries")
    gaps <<= k
    gaps |= _low_bits(data[unary_bytes:], count, k)
    positions = np.cumsum(gaps + 1) - 1
    if positions[-1] >= size:
        raise WireError(f"Rice stream reaches position {positions[-1]}, the tensor has {size} entries")
    return positions


def _low_bits(data: memoryview, count: int, k: int) -> Positions:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits.size != -(-count * k // 8) * 8 or bits[count * k :].any():
        raise WireError(f"Rice stream has {bits.size} low bits or padding that is not zero, {count} x {k} are needed")
    low = np.zeros(count, np.int64)
    for bit, row in enumerate(bits[: count * k].reshape(k, count)):
        low |= row.astype(np.int64) << bit
    return low


def _gaps(positions: Positions) -> Positions:
    return np.diff(positions, prepend=-1) - 1


def _sizes(gaps: Positions, k: int) -> RicePlan:
    unary_bits = int((gaps >> k).sum()) + gaps.size
    return RicePlan(k, -(-unary_bits // 8), -(-gaps.size * k // 8))
