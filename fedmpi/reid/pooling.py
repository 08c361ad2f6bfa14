"""The training images of several clients as those of one, for the centralised bound."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmpi.reid.images import ImageList, Pixels


@dataclass(frozen=True)
class JoinedPixels:
    """The pixels of several lists, one after the other; ``starts`` are their first positions, and the end."""

    parts: tuple[Pixels, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, parts: Sequence[Pixels]) -> "JoinedPixels":
        """Join ``parts``."""
        ends = np.cumsum([len(part) for part in parts])
        return cls(tuple(parts), (0, *map(int, ends)))

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as RGB uint8[H, W, 3]."""
        part, place = self._find(index)
        return part.read(place)

    def name(self, index: int) -> str:
        """Return the label of image `index`."""
        part, place = self._find(index)
        return part.name(place)

    def take(self, indices: NDArray[np.int64]) -> "JoinedPixels":
        """Return the images at `indices`, in that order."""
        found = [self._find(int(index)) for index in indices]
        return JoinedPixels.of([part.take(np.array([place])) for part, place in found])

    def _find(self, index: int) -> tuple[Pixels, int]:
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[which], index - self.starts[which]


def pool(lists: Sequence[ImageList]) -> ImageList:
    """Return the images of all lists, in their order; no camera and no identity of two lists is the same."""
    pids, camids = (_apart([getattr(images, name) for images in lists]) for name in ("pids", "camids"))
    return ImageList(pids, camids, JoinedPixels.of([images.pixels for images in lists]))


def _apart(numbers: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the numbers of all parts, those of a part shifted past the ones before it."""
    shift, shifted = 0, []
    for part in numbers:
        shifted.append(part - part.min(initial=0) + shift)
        shift = int(shifted[-1].max(initial=shift - 1)) + 1
    return np.concatenate(shifted)
