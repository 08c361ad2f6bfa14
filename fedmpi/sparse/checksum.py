"""The checksum of float32 values: xor and sum of 64-bit words, at a small part of the cost of copying them."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpi.errors import WireError
from fedmpi.sparse.backend import implementation

__all__ = ["Checksum", "check_values", "values_checksum"]

_MODULUS = 1 << 64


class Checksum(NamedTuple):
    """Two independent 64-bit sums over a vector of values; parts combine with ``+`` semantics in any order."""

    xor64: int = 0
    sum64: int = 0

    def combine(self, other: "Checksum") -> "Checksum":
        """Return the checksum of both parts together."""
        return Checksum(self.xor64 ^ other.xor64, (self.sum64 + other.sum64) % _MODULUS)


def values_checksum(values: NDArray[np.float32] | torch.Tensor, offset: int = 0) -> Checksum:
    """Return the checksum of float32[n] values that start at place ``offset`` of their message.

    Values ``2 i`` and ``2 i + 1`` of the message form the low and the high half of word ``i``; a missing half is zero.
    So the checksum of a message is the combination of those of its segments, wherever it is cut. That of a tensor is
    computed on its device.
    """
    if isinstance(values, torch.Tensor):
        return _on_device(values, offset % 2)
    return Checksum(*implementation().checksum(values, offset % 2))


def _on_device(values: torch.Tensor, before: int) -> Checksum:
    """Return the checksum of float32[n] on any device; only its 16 bytes come to the host."""
    halves = values.new_zeros(before + values.numel() + (before + values.numel()) % 2)
    halves[before : before + values.numel()] = values
    words = halves.view(torch.int64)
    total = words.sum()  # wraps, as it has to
    while words.numel() > 1:  # torch has no reduction by xor: the second half is folded onto the first
        middle = (words.numel() + 1) // 2
        folded = words[:middle].clone()
        folded[: words.numel() - middle] ^= words[middle:]
        words = folded
    xor64, sum64 = torch.stack([words.sum(), total]).tolist()
    return Checksum(xor64 % _MODULUS, sum64 % _MODULUS)


def check_values(found: Checksum, announced: Checksum, count: int, what: str) -> None:
    """Raise ``WireError`` when ``count`` values that came do not have the announced checksum."""
    if found != announced:
        raise WireError(f"{what}: the checksum of {count} values does not match; they were damaged on the way")
