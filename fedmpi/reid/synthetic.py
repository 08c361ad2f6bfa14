"""The embedded data set: eight clients of drawn pedestrians, made in memory from a seed in a few seconds.

The clients mirror the eight Re-ID benchmarks of FedReID (Zhuang et al. 2020) in their numbers of cameras and,
compressed, in their relative numbers of identities and images, each a domain with clothes, places and light of its own:
non-IID in size and in style. Nothing is downloaded and nobody real is shown.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fedmpi.errors import DataError
from fedmpi.reid.images import ClientData, ImageList, MemoryPixels
from fedmpi.reid.people import draw_person
from fedmpi.reid.profiles import PROFILES
from fedmpi.reid.scene import draw_camera, shoot
from fedmpi.seeding import Stream, generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from fedmpi.config import DataConfig
    from fedmpi.reid.people import Person
    from fedmpi.reid.profiles import Profile
    from fedmpi.reid.scene import Camera

SUBSETS = ("train_all", "query", "gallery")


NAMES = tuple(PROFILES)

FIRST_TEST = 5001
"""Number of the first test identity: above all training identities, and with the others below 10 000 (four digits)."""
MOST_SHOTS = 98
"""Images per identity and camera at most."""
LOOKS, CAMERA, PRESENCE, SHOT = range(4)
"""What a generator of the stream is for; the `round` of its address."""


@dataclass(frozen=True)
class Slot:
    """One image to draw: who, where, and in which subset."""

    subset: str
    pid: int
    camid: int
    shot: int


def draw_client(data: DataConfig, seed: int, name: str) -> ClientData:
    """Draw all images of client `name` (one of `NAMES`) in memory.

    Parameters
    ----------
    data
        Gives height, width and `synthetic` (factors of the numbers of identities and images, difficulty).
    seed
        Seed of the run; the client's index in `NAMES` makes its draws independent of the other clients.
    """
    return drawn(planned_client(data, seed, name), data, seed, name)


@dataclass(frozen=True)
class PlannedPixels:
    """Images of one subset that are still to be drawn, so that a part of them can be chosen first."""

    slots: tuple[Slot, ...]

    def __len__(self) -> int:
        return len(self.slots)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Refuse: there is nothing to be seen yet."""
        raise DataError(f"{self.name(index)} was not drawn")

    def name(self, index: int) -> str:
        """Return which image this will be."""
        return str(self.slots[index])

    def take(self, indices: NDArray[np.int64]) -> PlannedPixels:
        """Return the images at `indices`, in that order."""
        return PlannedPixels(tuple(self.slots[i] for i in indices))


def planned_client(data: DataConfig, seed: int, name: str) -> ClientData:
    """Return client `name` before anything is drawn: identities and cameras are known, pixels are not."""
    slots = plan_client(data, seed, name)
    return ClientData(name, *(_planned(tuple(s for s in slots if s.subset == subset)) for subset in SUBSETS))


def _planned(slots: tuple[Slot, ...]) -> ImageList:
    pids = np.array([slot.pid for slot in slots], dtype=np.int64)
    return ImageList(pids, np.array([slot.camid for slot in slots], dtype=np.int64), PlannedPixels(slots))


def drawn(planned: ClientData, data: DataConfig, seed: int, name: str) -> ClientData:
    """Draw what is planned of embedded client `name`; each image is the same whatever else is drawn."""
    lists = (planned.train, planned.query, planned.gallery)
    return ClientData(planned.name, *(_draw_list(part, data, seed, name) for part in lists))


def _draw_list(planned: ImageList, data: DataConfig, seed: int, name: str) -> ImageList:
    if not isinstance(planned.pixels, PlannedPixels):
        raise TypeError("only planned images can be drawn")
    slots = planned.pixels.slots
    labels = tuple(f"{name}/{slot.subset}/{file_name(name, slot)}" for slot in slots)
    return ImageList(planned.pids, planned.camids, MemoryPixels(_draw(data, seed, name, list(slots)), labels))


def _draw(data: DataConfig, seed: int, name: str, slots: list[Slot]) -> NDArray[np.uint8]:
    client, profile = NAMES.index(name), PROFILES[name]
    difficulty = float(data.synthetic.difficulty)

    def stream(kind: int, step: int) -> np.random.Generator:
        return generator(seed, Stream.SYNTHETIC, client=client, round=kind, step=step)

    cameras: dict[int, Camera] = {
        number: draw_camera(stream(CAMERA, number), profile.domain, number, difficulty)
        for number in range(1, profile.cameras + 1)
    }
    people: dict[int, Person] = {
        pid: draw_person(stream(LOOKS, pid), profile.domain.wardrobe) for pid in sorted({slot.pid for slot in slots})
    }
    pixels = np.empty((len(slots), data.height, data.width, 3), dtype=np.uint8)
    for image, slot in zip(pixels, slots, strict=True):
        rng = stream(SHOT, slot.pid * 10_000 + slot.camid * 100 + slot.shot)
        image[:] = shoot(rng, people[slot.pid], cameras[slot.camid], data.height, data.width)
    return pixels


def plan_client(data: DataConfig, seed: int, name: str) -> list[Slot]:
    """Return the images of client `name` in the order of their files: by subset, identity, camera, shot.

    Training identities are numbered from 1, those of query and gallery from `FIRST_TEST`, followed by those that are
    only in the gallery. A test identity has one query in each of two of its cameras. Looks depend on a person's number
    alone, so that a change of `data.synthetic.identities` or `.test_identities` adds or removes people and leaves the
    others as they are.
    """
    factors = data.synthetic
    people, images = float(factors.identities), float(factors.images)
    tested = (people * float(factors.test_identities), images * float(factors.test_images))
    return list(_slots((people, images), tested, seed, name))


@lru_cache(maxsize=1)  # the parts of a split ask one after the other
def _slots(training: tuple[float, float], testing: tuple[float, float], seed: int, name: str) -> tuple[Slot, ...]:
    """Both pairs are the factors of identities and images."""
    profile = PROFILES[name]
    (trained, train_images), (tested, test_images) = training, testing
    train, test = max(2, round(trained * profile.train)), max(2, round(tested * profile.test))
    only_gallery = round(tested * profile.extra)

    def seen(pid: int, shots: tuple[int, int], images: float) -> list[tuple[int, int]]:
        rng = generator(seed, Stream.SYNTHETIC, client=NAMES.index(name), round=PRESENCE, step=pid)
        return _presence(rng, profile, shots, images)

    slots = [
        Slot("train_all", pid, camid, shot)
        for pid in range(1, train + 1)
        for camid, shots in seen(pid, profile.shots, train_images)
        for shot in range(shots)
    ]
    for number in range(test + only_gallery):
        pid = FIRST_TEST + number
        slots += _test_slots(pid, seen(pid, profile.test_shots, test_images), queries=2 if number < test else 0)
    return tuple(sorted(slots, key=lambda slot: (SUBSETS.index(slot.subset), slot.pid, slot.camid, slot.shot)))


def _presence(
    rng: np.random.Generator, profile: Profile, shots: tuple[int, int], factor: float
) -> list[tuple[int, int]]:
    """Return (camera, number of images) for the cameras that see one identity."""
    views = int(rng.integers(profile.views[0], profile.views[1] + 1))
    cameras = np.sort(rng.permutation(profile.cameras)[:views] + 1)
    counts = np.clip(np.rint(factor * rng.integers(shots[0], shots[1] + 1, size=views)), 1, MOST_SHOTS)
    return [(int(camera), int(count)) for camera, count in zip(cameras, counts, strict=True)]


def _test_slots(pid: int, seen: list[tuple[int, int]], *, queries: int) -> list[Slot]:
    """Return the test images of one identity: shot 0 of its first `queries` cameras is the query, the rest gallery."""
    asked = [Slot("query", pid, camid, 0) for camid, _ in seen[:queries]]
    start = {slot.camid: 1 for slot in asked}
    return asked + [
        Slot("gallery", pid, camid, shot)
        for camid, shots in seen
        for shot in range(start.get(camid, 0), shots + start.get(camid, 0))
    ]


def file_name(name: str, slot: Slot) -> str:
    """Return the name of an image of client `name` in the processed layout; it encodes the camera."""
    if PROFILES[name].long_names:
        return f"{slot.pid:04d}_c{slot.camid}s1_{slot.shot:06d}_00.png"
    return f"cam_{slot.camid}_{slot.pid:05d}_{slot.shot:05d}.png"


def write_tree(root: Path, data: DataConfig, seed: int, progress: Callable[[str, int], None] | None = None) -> int:
    """Write the embedded data as PNG files in the processed layout; training from them equals training from memory.

    Parameters
    ----------
    root
        A new or empty folder; gets ``<client>/pytorch/{train_all,query,gallery}/<identity>/<image>.png``.
    data
        As for `draw_client`; `data.clients` selects clients.
    progress
        Called with client and number of images after each client.

    Returns
    -------
    int
        Number of images written.

    Raises
    ------
    DataError
        `root` is a file or a folder that is not empty, or cannot be written.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: exists and is not an empty folder; name a new one, nothing is overwritten")
    total = 0
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name in selected(tuple(data.clients)):
            count = _write_client(root, draw_client(data, seed, name))
            total += count
            if progress is not None:
                progress(name, count)
    except OSError as error:
        raise DataError(f"{root}: cannot write the images: {error.strerror or error}") from error
    return total


def _write_client(root: Path, client: ClientData) -> int:
    """Write one client next to its place and move it there when it is whole; return the number of images."""
    partial = Path(tempfile.mkdtemp(prefix=f".{client.name}-", dir=root))
    try:
        count = sum(_write_image(partial, image, label, pid) for image, label, pid in _images(client))
        partial.chmod(0o755)
        partial.rename(root / client.name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return count


def _images(client: ClientData) -> Iterator[tuple[NDArray[np.uint8], str, int]]:
    for images in (client.train, client.query, client.gallery):
        for i in range(len(images)):
            yield images.pixels.read(i), images.pixels.name(i), int(images.pids[i])


def _write_image(folder: Path, image: NDArray[np.uint8], label: str, pid: int) -> int:
    _, subset, file = label.split("/")
    target = folder / "pytorch" / subset / f"{pid:05d}"
    target.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(target / file)
    return 1


def selected(clients: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the embedded clients that a run uses: `clients` in their order, or all eight."""
    unknown = [name for name in clients if name not in NAMES]
    if unknown:
        raise DataError(f"data.clients: no embedded client {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return clients or NAMES
