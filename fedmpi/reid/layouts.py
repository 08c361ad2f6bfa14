"""Folders of images as the field lays them out, read as lists of (file, identity, camera).

Two layouts are known (METHOD section 7):

- *processed*, of FedReID, FedUReID and FedCAPR: ``<client>/pytorch/{train_all,query,gallery}/<identity>/<image>``;
- *raw*, of Market-1501, DukeMTMC-reID and CUHK03-NP: ``<client>/{bounding_box_train,query,bounding_box_test}/<image>``.

Nothing is decoded here. Files and folders are taken in sorted order, so that a list is the same on every machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmpi.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
"""Endings of image files, in any case; other files are passed over."""
PROCESSED = ("train_all", "query", "gallery")
RAW = ("bounding_box_train", "query", "bounding_box_test")
EXPECTED = (
    "expected <client>/pytorch/{train_all,query,gallery}/<identity>/<image> "
    "or <client>/{bounding_box_train,query,bounding_box_test}/<image>"
)

BENCHMARKS = (
    "duke", "dukemtmc-reid", "market", "market-1501", "market-1501-v15.09.15", "cuhk03-np-detected", "cuhk03-np",
    "prid", "cuhk01", "viper", "3dpes", "ilids", "msmt17",
)  # fmt: skip
"""Known client folders in the order of FedReID's tables; they come first and in this order, others follow by name."""

_SMALL_SET = re.compile(r"cam_(\d+)_")
_CAMERA = re.compile(r"_c(\d+)")
_MSMT17 = re.compile(r"\d{4}_\d{3}_(\d{2})_")
_MARKET = re.compile(r"([-\d]+)_c(\d+)")
_IDENTITY = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Entry:
    """One image file with its labels."""

    path: str
    pid: int
    camid: int


@dataclass(frozen=True)
class Folder:
    """A folder that holds one client."""

    name: str
    path: Path
    processed: bool

    def subset(self, index: int) -> Path:
        """Return the folder of train (0), query (1) or gallery (2)."""
        return self.path / "pytorch" / PROCESSED[index] if self.processed else self.path / RAW[index]


def find_folders(root: Path, only: Collection[str] = ()) -> list[Folder]:
    """Return the clients under `root`, or `root` itself when it is one; only folder names are looked at.

    What is wrong with clients beside those in `only` does not matter, if it names any of those found.

    Raises
    ------
    DataError
        `root` is not a folder, holds no client, or a client lacks train, query or gallery.
    """
    if not root.is_dir():
        raise DataError(f"data.root: {root} is not a folder; {EXPECTED}")
    try:
        folders = _as_client(root) or [
            folder
            for path in sorted(root.iterdir())
            if path.is_dir() and path.name[0] != "."
            for folder in _as_client(path)
        ]
    except OSError as error:
        raise DataError(f"data.root: {root} cannot be listed: {error.strerror}") from error
    if not folders:
        raise DataError(f"data.root: no client found in {root}; {EXPECTED}")
    for folder in [folder for folder in folders if folder.name in only] or folders:
        for index in range(3):
            if not folder.subset(index).is_dir():
                raise DataError(f"data.root: {folder.subset(index)} is missing; {EXPECTED}")
    return sorted(folders, key=_rank)


def _as_client(path: Path) -> list[Folder]:
    name = path.resolve().name
    if (path / "pytorch").is_dir():
        return [Folder(name, path, processed=True)]
    if (path / RAW[0]).is_dir() or (path / RAW[2]).is_dir():
        return [Folder(name, path, processed=False)]
    return []


def _rank(folder: Folder) -> tuple[int, str]:
    name = folder.name.lower()
    return (BENCHMARKS.index(name) if name in BENCHMARKS else len(BENCHMARKS)), folder.name


def list_subset(folder: Folder, index: int) -> list[Entry]:
    """Return the images of train (0), query (1) or gallery (2) in sorted order.

    Identity -1 (junk) is kept in the gallery only, where evaluation ignores it; identity 0 is kept as it is.

    Raises
    ------
    DataError
        The folder has no image with an identity, or a name that gives no identity or no camera.
    """
    path = folder.subset(index)
    try:
        entries = list(_processed(path) if folder.processed else _raw(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be listed: {error.strerror}") from error
    if index != 2:
        entries = [entry for entry in entries if entry.pid >= 0]
    if not any(entry.pid >= 0 for entry in entries):
        raise DataError(f"{path}: no image of any identity ({', '.join(sorted(SUFFIXES))}); {EXPECTED}")
    return entries


def _files(path: Path) -> list[Path]:
    return sorted(
        file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != "." and file.is_file()
    )


def _processed(path: Path) -> Iterator[Entry]:
    for identity in sorted(path.iterdir()):
        if not identity.is_dir() or identity.name[0] == ".":
            continue
        if not _IDENTITY.fullmatch(identity.name):
            raise DataError(f"{identity}: the folder of an identity must be named by its number (0002; -1 = junk)")
        for file in _files(identity):
            yield Entry(str(file), int(identity.name), camera_of(file))


def _raw(path: Path) -> Iterator[Entry]:
    for file in _files(path):
        match = _MARKET.match(file.name)
        if match is None or not _IDENTITY.fullmatch(match[1]):
            raise DataError(
                f"{file}: name gives no identity and camera; expected names such as 0002_c1s1_000451_03.jpg"
            )
        yield Entry(str(file), int(match[1]), int(match[2]))


def camera_of(file: Path) -> int:
    """Return the camera that the name of a processed image encodes.

    ``cam_2_00017_00003.png`` (small sets), ``0002_c1s1_000451_03.jpg`` (any number of digits), or MSMT17's own
    ``0000_001_14_0303morning_0022_0.jpg`` (third field).
    """
    match = _SMALL_SET.match(file.name) or _CAMERA.search(file.name) or _MSMT17.match(file.name)
    if match is None:
        raise DataError(f"{file}: name gives no camera; expected cam_2_00017_00003.png or 0002_c1s1_000451_03.jpg")
    return int(match[1])
