"""What the rest of fedmpi sees of a data set: lists of labelled images whose pixels are read when they are needed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
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
        """Return a short label for messages, such as ``Market/query image 17``."""
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
        Client and subset, put before the number of the image in messages.
    max_megapixels
        Larger images are refused from their header, before anything is decoded.
    named
        Give file names in messages. They hold identity, camera and time, so by default images are numbered from 1.
    numbers
        Numbers of the images in messages; None = 1, 2, ...
    """

    paths: tuple[str, ...]
    label: str
    max_megapixels: float
    named: bool = False
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return ``<client>/<subset> image <number>``, or ``<client>/<subset>/<file>`` if files are to be named."""
        if self.named:
            return f"{self.label}/{Path(self.paths[index]).name}"
        return f"{self.label} image {index + 1 if self.numbers is None else self.numbers[index]}"

    def take(self, indices: NDArray[np.int64]) -> FilePixels:
        """Return the images at `indices`, in that order."""
        numbers = tuple(int(i) + 1 if self.numbers is None else self.numbers[i] for i in indices)
        return replace(self, paths=tuple(self.paths[i] for i in indices), numbers=numbers)

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
            reason = str(error).replace(repr(self.paths[index]), "").replace(self.paths[index], "").strip(" :")
            reason = reason or type(error).__name__
            raise DataError(f"{self.name(index)}: cannot be read as an image: {reason}") from error


def decode(path: str, max_megapixels: float) -> NDArray[np.uint8]:
    """Decode one file to RGB uint8[H, W, 3]; ValueError when it has more than `max_megapixels` (10^6 pixels)."""
    with Image.open(path, formats=FORMATS) as image:
        megapixels = image.width * image.height / 1e6
        if megapixels > max_megapixels:
            limit = f"above data.max_megapixels={max_megapixels:g}"
            raise ValueError(f"{image.width}x{image.height} is {megapixels:.1f} megapixels, {limit}")
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return an image of any mode as RGB bytes; of 16 bits the upper 8 are kept (Pillow itself would cut at 255)."""
    if image.mode == "F":
        raise ValueError("floating-point pixels of unknown range")
    if image.mode.startswith("I"):
        grey = (np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)


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
