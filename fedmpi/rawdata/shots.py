"""Images of a release as its reader found them, before anything is copied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedmpi.errors import DataError
from fedmpi.reid.layouts import SUFFIXES

if TYPE_CHECKING:
    from pathlib import Path

SUBSETS = ("train_all", "query", "gallery")


@dataclass(frozen=True)
class Shot:
    """One image: where it lies, whom it shows, and how it is called in the processed layout.

    Attributes
    ----------
    source
        The file of the release.
    pid
        Identity; -1 = junk, 0 = distractor in sets that use it so.
    name
        File name in the processed layout; it encodes the camera.
    member
        Name of the image inside `source` when that is a .mat file, else empty.
    """

    source: Path
    pid: int
    name: str
    member: str = ""


@dataclass(frozen=True)
class Person:
    """All images of one person, by camera; what a split deals out."""

    pid: int
    cameras: tuple[tuple[Path, ...], ...]


@dataclass(frozen=True)
class Selection:
    """The images of the three subsets."""

    train: list[Shot] = field(default_factory=list)
    query: list[Shot] = field(default_factory=list)
    gallery: list[Shot] = field(default_factory=list)

    def subsets(self) -> dict[str, list[Shot]]:
        """Return the lists by the name of their folder."""
        return dict(zip(SUBSETS, (self.train, self.query, self.gallery), strict=True))


def small_name(camid: int, pid: int, number: int, suffix: str) -> str:
    """Return the name of an image of a small set: ``cam_1_00017_00003.png``."""
    return f"cam_{camid}_{pid:05d}_{number:05d}{suffix.lower()}"


def small_shots(person: Person, cameras: tuple[int, ...]) -> list[Shot]:
    """Return the images that the given cameras (from 1) have of a person."""
    return [
        Shot(path, person.pid, small_name(camid, person.pid, number, path.suffix))
        for camid in cameras
        for number, path in enumerate(person.cameras[camid - 1])
    ]


def image_files(folder: Path, expected: str) -> list[Path]:
    """Return the image files of a folder, sorted by name; what is no regular file or hidden is passed over.

    Raises
    ------
    DataError
        There is no such folder, or no image in it; the message says what was `expected`.
    """
    try:
        found = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.name[0] != "." and f.is_file())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); expected {expected}") from error
    if not found:
        raise DataError(f"{folder}: no images; expected {expected}")
    return found
