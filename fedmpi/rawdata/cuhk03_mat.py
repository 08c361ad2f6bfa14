"""CUHK03's own release: one MATLAB 7.3 file (HDF5) of images, and the new protocol as a MATLAB 5 file beside it.

``cuhk-03.mat`` holds the cells ``detected`` and ``labeled``: five camera pairs, each a cell of persons x 10 images, the
first five of the first camera. A pixel array is H x W x 3 in MATLAB and 3 x W x H in HDF5; missing images are empty.
``cuhk03_new_protocol_config_<variant>.mat`` lists the images as ``1_001_1_01.png`` (pair, person, camera, image) with
identities, and the positions of train, query and gallery, counted from 1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fedmpi.errors import DataError
from fedmpi.rawdata.shots import Selection, Shot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_NAME = re.compile(r"(\d)_(\d{3})_([12])_(\d{2})\.png")


def read(raw: Path, variant: str) -> Selection:
    """Read the release below `raw`; members are named ``<variant>/1_001_1_01.png``.

    Raises
    ------
    DataError
        A file is missing or is not what it should be.
    """
    images = _find(raw, "cuhk-03.mat", "images; or a folder in the format of Market-1501")
    protocol = _find(raw, f"cuhk03_new_protocol_config_{variant}.mat", "the split of the new protocol")
    names, pids, parts = _protocol(protocol)
    with _Release(images, variant) as release:
        missing = next((names[i] for part in parts for i in part if not release.has(names[i])), None)
    if missing is not None:
        raise DataError(f"{protocol}: lists {missing}, which {images} does not hold as {variant}")
    return Selection(*(_shots(images, variant, names, pids, part) for part in parts))


def _find(raw: Path, name: str, what: str) -> Path:
    places = [raw / name, raw / "cuhk03_release" / name, raw.parent / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(f"{raw}: holds no {name} ({what}); expected bounding_box_train, or both .mat files")
    return found


def _protocol(path: Path) -> tuple[list[str], NDArray[np.int64], list[NDArray[np.int64]]]:
    """Return the file names, their identities, and the positions (from 0) of train, query and gallery."""
    from scipy.io import loadmat  # noqa: PLC0415 - scipy.io is slow to import

    try:
        content = loadmat(path)
        names = [str(entry[0]) for entry in content["filelist"].ravel()]
        pids = content["labels"].ravel().astype(np.int64)
        parts = [content[f"{key}_idx"].ravel().astype(np.int64) - 1 for key in ("train", "query", "gallery")]
    except Exception as error:  # a damaged file raises nearly anything
        raise DataError(f"{path}: is no protocol of CUHK03-NP ({type(error).__name__}: {error})") from error
    bad = next((name for name in names if not _NAME.fullmatch(name)), None)
    outside = any(part.size and (part.min() < 0 or part.max() >= len(names)) for part in parts)
    if bad is not None or outside or len(pids) != len(names):
        raise DataError(f"{path}: is no protocol of CUHK03-NP (unexpected {bad or 'lengths'})")
    return names, pids, parts


def _shots(source: Path, variant: str, names: list[str], pids: NDArray[np.int64], part: Iterable[int]) -> list[Shot]:
    shots = []
    for i in part:
        pair, person, camera, number = _NAME.fullmatch(names[i]).groups()  # type: ignore[union-attr] # checked above
        pid = int(pids[i])
        target = f"{pid:04d}_c{camera}_{pair}{person}{number}.png"
        shots.append(Shot(source, pid, target, f"{variant}/{names[i]}"))
    return shots


class _Release:
    """An open ``cuhk-03.mat``."""

    def __init__(self, path: Path, variant: str) -> None:
        import h5py  # noqa: PLC0415

        self._path, self._variant = path, variant
        try:
            self._file = h5py.File(path, "r")
            self._pairs = [self._file[reference] for reference in self._file[variant][0]]
        except Exception as error:  # neither HDF5 nor the expected cells
            raise DataError(f"{path}: is no release of CUHK03 ({type(error).__name__}: {error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, name: str) -> bool:
        """Return whether there is an image of that name."""
        cell = self._cell(name)
        return cell is not None and cell.ndim == 3

    def image(self, name: str) -> NDArray[np.uint8]:
        """Return the image as RGB uint8[H, W, 3]."""
        cell = self._cell(name)
        if cell is None or cell.ndim != 3 or cell.shape[0] != 3 or cell.dtype != np.uint8:
            raise DataError(f"{self._path}: {self._variant}/{name} is no RGB image of bytes")
        return np.ascontiguousarray(cell[:].T)

    def _cell(self, name: str) -> Any:  # noqa: ANN401 - h5py has no types
        """Return the dataset of a name, None when pair, person or image do not exist."""
        pair, person, _, number = (int(part) for part in _NAME.fullmatch(name).groups())  # type: ignore[union-attr]
        if not (0 < pair <= len(self._pairs)):
            return None
        cells = self._pairs[pair - 1]  # [images, persons]
        if not (0 < number <= cells.shape[0] and 0 < person <= cells.shape[1]):
            return None
        return self._file[cells[number - 1, person - 1]]


def images(path: Path, members: Iterable[str]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of ``<variant>/<name>`` members as RGB uint8[H, W, 3]; all of one variant."""
    release: _Release | None = None
    try:
        for member in members:
            variant, _, name = member.partition("/")
            release = release or _Release(path, variant)
            yield release.image(name)
    finally:
        if release is not None:
            release.__exit__()
