"""What the rest of fedmpi sees of a data set: lists of labelled images whose pixels are read when they are needed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image, ImageOps

from fedmpi.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
"""The only decoders that Pillow may use, whatever a file claims to be."""


class Pixels(Protocol):
    """Pixels of a list of images, read one by one."""

    def __len__(self) -> int:
        """Return the number of images, readable or not."""
        ...

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as RGB uint8[H, W, 3]; raise DataError when it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Return a short label for messages, such as ``Market/query/0002_c1s1_000451_00.jpg``."""
        ...

    def take(self, indices: NDArray[np.int64]) -> Pixels:
        """Return the images at `indices`, in that order."""
        ...


@dataclass(frozen=True)
class MemoryPixels:
    """Images held in memory: uint8[n, H, W, 3]."""

    array: NDArray[np.uint8]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.array)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return a view of image `index`, uint8[H, W, 3]."""
        image: NDArray[np.uint8] = self.array[index]
        return image

    def name(self, index: int) -> str:
        """Return the label of image `index`."""
        return self.names[index]

    def take(self, indices: NDArray[np.int64]) -> MemoryPixels:
        """Return the images at `indices`, in that order."""
        return MemoryPixels(self.array[indices], tuple(self.names[i] for i in indices))


@dataclass(frozen=True)
class FilePixels:
    """Images in files, decoded at every read.

    Parameters
    ----------
    paths
        The files, absolute or relative to the working directory.
    label
        Client and subset, put before the file name in messages.
    max_megapixels
        Larger images are refused from their header, before anything is decoded.
    """

    paths: tuple[str, ...]
    label: str
    max_megapixels: float

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return ``<client>/<subset>/<file>``: enough to find the file, without the absolute path."""
        return f"{self.label}/{Path(self.paths[index]).name}"

    def take(self, indices: NDArray[np.int64]) -> FilePixels:
        """Return the images at `indices`, in that order."""
        return FilePixels(tuple(self.paths[i] for i in indices), self.label, self.max_megapixels)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Decode image `index` to RGB uint8[H, W, 3], upright by its EXIF orientation.

        Raises
        ------
        DataError
            The file is missing, truncated, too large, or no image of a known format.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                return decode(self.paths[index], self.max_megapixels)
        except Exception as error:
            reason = str(error).replace(self.paths[index], Path(self.paths[index]).name) or type(error).__name__
            raise DataError(f"{self.name(index)}: cannot be read as an image: {reason}") from error


def decode(path: str, max_megapixels: float) -> NDArray[np.uint8]:
    """Decode one file to RGB uint8[H, W, 3]; ValueError when it has more than `max_megapixels` (10^6 pixels)."""
    with Image.open(path, formats=FORMATS) as image:
        megapixels = image.width * image.height / 1e6
        if megapixels > max_megapixels:
            limit = f"above data.max_megapixels={max_megapixels:g}"
            raise ValueError(f"{image.width}x{image.height} is {megapixels:.1f} megapixels, {limit}")
        return np.array(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)


@dataclass(frozen=True)
class ImageList:
    """Labelled images: train, query or gallery of one client.

    Attributes
    ----------
    pids
        Identity per image, int64[n]; -1 is junk (only in a gallery), 0 a distractor in sets that use it so.
    camids
        Camera per image, int64[n], numbered as in the file names.
    pixels
        The n images.
    bad
        Positions found unreadable so far; loading adds to it.
    resized
        Decoded images by (height, width), kept by loading for small lists.
    """

    pids: NDArray[np.int64]
    camids: NDArray[np.int64]
    pixels: Pixels
    bad: set[int] = field(default_factory=set)
    resized: dict[tuple[int, int], dict[int, NDArray[np.uint8]]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.pids)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageList:
        """Return the images at `indices` as a list of their own, nothing yet known to be bad."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageList(self.pids[chosen], self.camids[chosen], self.pixels.take(chosen))


@dataclass(frozen=True)
class ClientData:
    """The data of one federated client; train and test identities are disjoint."""

    name: str
    train: ImageList
    query: ImageList
    gallery: ImageList
