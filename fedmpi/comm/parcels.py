"""What the downlink is told of each client, and what it brings it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmpi.sparse import Mask


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
    """What one client received: values at its positions, ``float32[nnz]``, and buffers, ``float32[B]``."""

    values: NDArray[np.float32]
    buffers: NDArray[np.float32]
