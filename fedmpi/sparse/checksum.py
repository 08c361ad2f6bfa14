"""The checksum of float32 values: xor and sum of 64-bit words, at a small part of the cost of copying them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Checksum", "values_checksum"]

_MODULUS = 1 << 64


class Checksum(NamedTuple):
    """Two independent 64-bit sums over a vector of values; parts combine with ``+`` semantics in any order."""

    xor64: int = 0
    sum64: int = 0

    def combine(self, other: "Checksum") -> "Checksum":
        """Return the checksum of both parts together."""
        return Checksum(self.xor64 ^ other.xor64, (self.sum64 + other.sum64) % _MODULUS)


def values_checksum(values: NDArray[np.float32], offset: int = 0) -> Checksum:
    """Return the checksum of float32[n] values that start at place ``offset`` of their message.

    Values ``2 i`` and ``2 i + 1`` of the message form the low and the high half of word ``i``; a missing half is zero.
    So the checksum of a message is the combination of those of its segments, wherever it is cut.
    """
    bits = values.view("<u4")
    head = bits[: offset % 2]  # one value that is the high half of a word begun by the segment before
    body = bits[offset % 2 :]
    pairs = body[: body.size // 2 * 2].view("<u8")
    total = Checksum(int(np.bitwise_xor.reduce(pairs)), int(np.add.reduce(pairs)))
    if body.size % 2:
        total = total.combine(Checksum(int(body[-1]), int(body[-1])))
    if head.size:
        high = int(head[0]) << 32
        total = total.combine(Checksum(high, high))
    return total
