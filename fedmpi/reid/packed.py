"""Resized images in one file per list, shared by the ranks and workers of a node and by later runs.

Decoding and resizing an image takes several times as long as reading the result. The file fills as images are read;
there is no step to wait for and no lock: whoever decodes an image first writes it to its slot, and others who do the
same at the same time write the same bytes. A slot counts only with the checksum of its content, so that a slot that was
half written, by a crash or at this moment, is decoded again.

File: uint32[n] checksums (0 = empty), then uint8[n, height, width, 3], both at offsets that the sizes give. Its name is
a digest of the names, sizes and times of the image files, so that a changed set gets a new file.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmpi.errors import DataError
from fedmpi.reid.transforms import resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedmpi.reid.images import FilePixels

VERSION = b"fedmpi packed images 1\n"


class PackedPixels:
    """`FilePixels` whose resized images are kept in a file below ``folder``.

    `read` returns images of height x width; resizing them to that size again changes nothing.
    """

    def __init__(self, source: FilePixels, folder: Path, height: int, width: int) -> None:
        self._source, self._shape = source, (len(source), height, width, 3)
        self._rows = np.arange(len(source))
        self.path = folder / f"{_digest(source, height, width)}.images"
        _make(self.path, len(source) * (4 + height * width * 3))
        self._maps: tuple[NDArray[np.uint32], NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": None}  # a worker maps the file itself

    def name(self, index: int) -> str:
        """Return the label of image `index`."""
        return self._source.name(int(self._rows[index]))

    def take(self, indices: NDArray[np.int64]) -> PackedPixels:
        """Return the images at `indices`, in that order, from the same file."""
        chosen = object.__new__(PackedPixels)
        chosen.__dict__ = {**self.__dict__, "_rows": self._rows[indices]}
        return chosen

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as RGB uint8[height, width, 3]; DataError when its file cannot be read."""
        row = int(self._rows[index])
        sums, slots = self._mapped()
        image: NDArray[np.uint8] = np.array(slots[row])
        if sums[row] == _checksum(image):
            return image
        image = resize(self._source.read(row), *self._shape[1:3])
        slots[row] = image
        sums[row] = _checksum(image)
        return image

    def _mapped(self) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        if self._maps is None:
            count = self._shape[0]
            try:
                self._maps = (
                    np.memmap(self.path, np.uint32, "r+", 0, (count,)),
                    np.memmap(self.path, np.uint8, "r+", 4 * count, self._shape),
                )
            except (OSError, ValueError) as error:
                raise DataError(f"data.cache_dir: {self.path} cannot be used: {error}") from error
        return self._maps


def _checksum(image: NDArray[np.uint8]) -> int:
    return max(1, zlib.crc32(image.tobytes()))


def _digest(source: FilePixels, height: int, width: int) -> str:
    digest = hashlib.sha256(VERSION + f"{height} {width} {source.max_megapixels}\n".encode())
    for path in source.paths:
        try:
            status = Path(path).stat()
            line = f"{Path(path).name}\t{status.st_size}\t{status.st_mtime_ns}\n"
        except OSError:
            line = f"{Path(path).name}\tunreadable\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _make(path: Path, size: int) -> None:
    """Make a file of `size` zero bytes, unless it is there; readable by its owner only, as it holds people's images."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size == size:
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.truncate(handle, size)
        os.close(handle)
        try:
            Path(path).hardlink_to(
                temporary
            )  # unlike a rename it never replaces a file that another rank has just made
        except FileExistsError:
            if path.stat().st_size != size:
                Path(temporary).replace(path)
        Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"data.cache_dir: {path.parent} cannot be used: {error.strerror}") from error
