"""Who trains and who is tested, where the release does not say: seeded halves, PRID's rule, or the field's files.

The rules are those of the DGD format (Xiao et al., "Learning Deep Feature Representations with Domain Guided Dropout",
CVPR 2016), which FedReID, FedUReID and FedCAPR build on. Its random numbers are not ours, so a split drawn here has its
sizes but other people; for its very people, hand in its ``split.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmpi.errors import DataError
from fedmpi.rawdata.facts import fact
from fedmpi.rawdata.shots import Person, Selection, Shot, image_files, small_name, small_shots

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from fedmpi.rawdata.facts import Fact

PRID_SHARED, PRID_A, PRID_B, PRID_SHOTS = 200, 385, 749, 10
"""Persons 1-200 are seen by both cameras, 201-385 by A, 201-749 by B; images per person and camera in training."""
_KEYS = (("trainval", "test_probe", "test_gallery"), ("trainval", "query", "gallery"))


def draw(persons: Sequence[Person], entry: Fact, rng: np.random.Generator) -> Selection:
    """Deal persons in the proportion of the published split (exactly its sizes when all persons are there)."""
    share = entry.train.identities / (entry.train.identities + entry.gallery.identities)
    order = rng.permutation(len(persons))
    cut = round(len(persons) * share)
    if not 0 < cut < len(persons):
        raise DataError(f"{entry.name}: {len(persons)} persons are too few for training and test")
    test = sorted(order[cut:].tolist())
    return choose(persons, train=sorted(order[:cut].tolist()), query=test, gallery=test)


def choose(
    persons: Sequence[Person], *, train: Sequence[int], query: Sequence[int], gallery: Sequence[int]
) -> Selection:
    """Return the images of the persons at these positions: camera 1 asks, the other cameras answer."""
    everywhere = tuple(range(1, len(persons[0].cameras) + 1))
    return Selection(
        [shot for i in train for shot in small_shots(persons[i], everywhere)],
        [shot for i in query for shot in small_shots(persons[i], (1,))],
        [shot for i in gallery for shot in small_shots(persons[i], everywhere[1:])],
    )


def prid(raw: Path, rng: np.random.Generator) -> Selection:
    """Apply PRID2011's rule to its release.

    A person keeps the number of the release; those whom only camera B knows are numbered on behind camera A's.
    """
    raw = raw / "prid_2011" if (raw / "prid_2011").is_dir() else raw
    shared, only_a, only_b = _prid_people(raw)
    tested = sorted(shared[i] for i in rng.permutation(len(shared))[: len(shared) // 2])
    train = [
        shot
        for number in [*(n for n in shared if n not in set(tested)), *only_a]
        for camid in ((1, 2) if number <= PRID_SHARED else (1,))
        for shot in _prid_tracklet(raw, number, camid, rng)
    ]
    query = [_prid_single(raw, number, 1, number) for number in tested]
    known = [_prid_single(raw, number, 2, number) for number in tested]
    return Selection(train, query, known + [_prid_single(raw, n, 2, n + PRID_A - PRID_SHARED) for n in only_b])


def _prid_people(raw: Path) -> tuple[list[int], list[int], list[int]]:
    """Return the numbers of the persons whom both cameras, only A and only B see."""
    seen = []
    for camera, last in (("cam_a", PRID_A), ("cam_b", PRID_B)):
        files = image_files(raw / "single_shot" / camera, fact("prid").raw)
        numbers = [int(f.stem.removeprefix("person_")) for f in files if f.stem.removeprefix("person_").isdecimal()]
        seen.append([n for n in numbers if n <= last])
    a, b = seen
    shared = [n for n in a if n in set(b) and n <= PRID_SHARED]
    if len(shared) < 2:
        raise DataError(f"{raw}: {len(shared)} persons seen by both cameras; expected {fact('prid').raw}")
    return shared, [n for n in a if n > PRID_SHARED], [n for n in b if n > PRID_SHARED]


def _prid_file(raw: Path, number: int, camid: int) -> Path:
    return raw / "single_shot" / f"cam_{'ab'[camid - 1]}" / f"person_{number:04d}.png"


def _prid_single(raw: Path, number: int, camid: int, pid: int) -> Shot:
    return Shot(_prid_file(raw, number, camid), pid, small_name(camid, pid, 0, ".png"))


def _prid_tracklet(raw: Path, number: int, camid: int, rng: np.random.Generator) -> list[Shot]:
    files = image_files(raw / "multi_shot" / f"cam_{'ab'[camid - 1]}" / f"person_{number:04d}", fact("prid").raw)
    chosen = sorted(rng.permutation(len(files))[:PRID_SHOTS].tolist())
    return [Shot(files[i], number, small_name(camid, number, n, files[i].suffix)) for n, i in enumerate(chosen)]


def _ilids_vid(path: Path) -> dict[str, list[int]]:
    """Read the first of iLIDS-VID's splits: a row counts persons from 1, its first half is tested, the rest trains."""
    from scipy.io import loadmat  # noqa: PLC0415 - scipy.io is slow to import

    try:
        row = [int(number) - 1 for number in loadmat(path)["ls_set"][0]]
    except Exception as error:  # a damaged file raises nearly anything
        raise DataError(f"{path}: no split file of iLIDS-VID ({type(error).__name__}: {error})") from error
    tested = row[: len(row) // 2]
    return dict(zip(_KEYS[0], (row[len(row) // 2 :], tested, tested), strict=True))


def read_split(path: Path, persons: int) -> dict[str, list[int]]:
    """Read a ``split.json`` of the DGD format (or open-reid's list of them), or the ``.mat`` of iLIDS-VID's authors.

    Where a file holds several splits, the first is taken.

    Returns
    -------
    Positions (from 0) of train, query and gallery, each below `persons`.

    Raises
    ------
    DataError
        The file is not such a split, or somebody is in both training and test.
    """
    content = _ilids_vid(path) if path.suffix == ".mat" else read_json(path)
    content = content[0] if isinstance(content, list) and content else content
    keys = next((k for k in _KEYS if all(name in content for name in k)), None)
    if keys is None or not isinstance(content, dict):
        raise DataError(f"{path}: no split; expected the keys {', '.join(_KEYS[0])}")
    split = dict(zip(("train", "query", "gallery"), (content[key] for key in keys), strict=True))
    for name, members in split.items():
        if not isinstance(members, list) or not members or not all(_position(m, persons) for m in members):
            raise DataError(f"{path}: {name} must be a list of whole numbers from 0 to {persons - 1}")
    both = set(split["train"]) & {*split["query"], *split["gallery"]}
    if both:
        raise DataError(f"{path}: {len(both)} persons are in both training and test (first: {min(both)})")
    return {name: sorted(set(members)) for name, members in split.items()}


def _position(value: object, persons: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < persons


def read_meta(raw: Path) -> list[Person]:
    """Read the ``meta.json`` of a folder in the DGD format: identities as lists of files by camera.

    Raises
    ------
    DataError
        The file is not of that format, or names a file that is not below `raw`.
    """
    path = raw / "meta.json"
    content = read_json(path)
    identities = content.get("identities") if isinstance(content, dict) else None
    if not isinstance(identities, list) or not identities:
        raise DataError(f"{path}: no list under 'identities'")
    persons = []
    for number, cameras in enumerate(identities):
        if not isinstance(cameras, list) or len(cameras) != len(identities[0]):
            raise DataError(f"{path}: identity {number} is no list of {len(identities[0])} cameras")
        persons.append(Person(number + 1, tuple(_meta_files(raw, path, number, files) for files in cameras)))
    return persons


def _meta_files(raw: Path, path: Path, number: int, files: object) -> tuple[Path, ...]:
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise DataError(f"{path}: identity {number} has a camera that is no list of file names")
    found = []
    for file in files:
        # open-reid keeps the same lists but all files in one folder
        place = next((p for p in (raw / file, raw / "images" / file) if p.is_file()), None)
        if place is None or ".." in place.parts or Path(file).is_absolute():
            raise DataError(f"{path}: identity {number} names '{file}', which is no file below {raw}")
        found.append(place)
    return tuple(found)


def read_json(path: Path) -> Mapping[str, Any] | list[Any]:
    """Return the content of a JSON file; DataError when there is none."""
    try:
        content: Mapping[str, Any] | list[Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    return content
