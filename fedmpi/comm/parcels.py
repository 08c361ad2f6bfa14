"""What the downlink is told of each client, and what it brings it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpi.sparse import Mask
from fedmpi.sparse.kernels import expand, pack

Room = Callable[[int], NDArray[np.float32]]
"""Makes a vector to be filled, ``float32[size]``."""
DeviceRoom = Callable[[int], torch.Tensor]
"""Makes one in the memory of a GPU, which MPI may write at once."""


def in_memory(size: int) -> NDArray[np.float32]:
    """Return a vector to be filled, ``float32[size]``."""
    return np.empty(size, np.float32)


def as_bytes(values: NDArray[np.float32] | torch.Tensor) -> NDArray[np.uint8] | torch.Tensor:
    """Return the same memory as bytes, which MPI takes from host and GPU alike."""
    return values.view(torch.uint8) if isinstance(values, torch.Tensor) else values.view(np.uint8)


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
        Those entries, ``float32[nnz]``, where they came as messages, a tensor where MPI wrote them to a GPU; where the
        client took them from shared memory already in their places, ``float32[N]`` with zeros elsewhere.
    buffers
        ``float32[B]``.
    """

    positions: Mask
    values: NDArray[np.float32] | torch.Tensor
    buffers: NDArray[np.float32]

    @property
    def on_host(self) -> NDArray[np.float32]:
        """`values` in the host's memory."""
        return self.values.cpu().numpy() if isinstance(self.values, torch.Tensor) else self.values

    def dense(self, room: Room = in_memory) -> NDArray[np.float32]:
        """Return the values in their places, ``float32[N]``, zeros elsewhere: `values` itself, or made in ``room``."""
        values, size = self.on_host, self.positions.size
        return values if values.size == size else expand(values, self.positions, out=room(size))

    def packed(self) -> NDArray[np.float32]:
        """Return the values one after the other, ``float32[nnz]``: `values` itself, or a copy."""
        values = self.on_host
        return values if values.size == self.positions.count() else pack(values, self.positions)
