"""What the downlink is told of each client, and what it brings it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmpi.sparse import Mask
from fedmpi.sparse.kernels import expand, pack

Room = Callable[[int], NDArray[np.float32]]
"""Makes a vector to be filled, ``float32[size]``."""


def in_memory(size: int) -> NDArray[np.float32]:
    """Return a vector to be filled, ``float32[size]``."""
    return np.empty(size, np.float32)


@dataclass(frozen=True)
class Address:
    """Which positions one client receives, and the epoch of the mask that says so (both ends know both).

    ``reference`` (``float32[N]``, or None) holds earlier values, the same at both ends at these positions.
    """

    positions: Mask
    epoch: int
    reference: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Parcel:
    """What one client received, in the form in which it came.

    Attributes
    ----------
    positions
        Which entries it received.
    values
        Those entries, ``float32[nnz]``, where they came as messages; where the client took them from shared memory
        already in their places, ``float32[N]`` with zeros elsewhere.
    buffers
        ``float32[B]``.
    """

    positions: Mask
    values: NDArray[np.float32]
    buffers: NDArray[np.float32]

    def dense(self, room: Room = in_memory) -> NDArray[np.float32]:
        """Return the values in their places, ``float32[N]``, zeros elsewhere: `values` itself, or made in ``room``."""
        size = self.positions.size
        return self.values if self.values.size == size else expand(self.values, self.positions, out=room(size))

    def packed(self) -> NDArray[np.float32]:
        """Return the values one after the other, ``float32[nnz]``: `values` itself, or a copy."""
        return self.values if self.values.size == self.positions.count() else pack(self.values, self.positions)
