"""One function per release: what its folders and file names say, as a `Selection` or as persons to be split.

Files are taken in sorted order, so that a seeded split is the same on every machine. Nothing is decoded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from fedmpi.errors import DataError
from fedmpi.rawdata import cuhk03_mat
from fedmpi.rawdata.facts import fact
from fedmpi.rawdata.shots import Person, Selection, Shot, image_files
from fedmpi.reid.layouts import RAW

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

_MARKET = re.compile(r"(-1|\d+)_c(\d+)")
_MSMT17_TRAIN, _MSMT17_TEST = ("train", "mask_train_v2"), ("test", "mask_test_v2")


def below(raw: Path, *names: str) -> Path:
    """Return the first of the folders `names` that `raw` holds (archives add a folder of their own), else `raw`."""
    return next((raw / name for name in names if (raw / name).is_dir()), raw)


def read_market(raw: Path) -> Selection:
    """Read Market-1501, DukeMTMC-reID or a CUHK03-NP folder; junk stays in the gallery only."""
    expected = fact("market").raw
    train, query, gallery = ([_market_shot(file) for file in image_files(raw / name, expected)] for name in RAW)
    return Selection([s for s in train if s.pid >= 0], [s for s in query if s.pid >= 0], gallery)


def _market_shot(file: Path) -> Shot:
    match = _MARKET.match(file.name)
    if match is None:
        raise DataError(f"{file}: name gives no identity and camera; expected names such as 0002_c1s1_000451_03.jpg")
    return Shot(file, int(match[1]), file.name)


def read_cuhk03(raw: Path, variant: str) -> Selection:
    """Read CUHK03-NP, `variant` detected or labeled: folders like Market-1501's, or the .mat of the release."""
    for folder in (raw / variant, raw / f"cuhk03-np/{variant}", raw / f"CUHK03-NP/{variant}", raw):
        if (folder / RAW[0]).is_dir():
            return read_market(folder)
    return cuhk03_mat.read(raw, variant)


def read_msmt17(raw: Path) -> Selection:
    """Read MSMT17 V1 or V2: the lists say who is in which subset; test identities are numbered on behind the others."""
    raw = below(raw, "MSMT17_V1", "MSMT17_V2")
    train_folder, test_folder = below(raw, *_MSMT17_TRAIN), below(raw, *_MSMT17_TEST)
    if raw in (train_folder, test_folder):
        raise DataError(f"{raw}: neither train and test nor mask_train_v2 and mask_test_v2; {fact('msmt17').raw}")
    train = [shot for part in ("train", "val") for shot in _msmt17(raw / f"list_{part}.txt", train_folder, 0)]
    behind = max(shot.pid for shot in train) + 1
    query, gallery = (_msmt17(raw / f"list_{part}.txt", test_folder, behind) for part in ("query", "gallery"))
    return Selection(train, query, gallery)


def _msmt17(listing: Path, folder: Path, behind: int) -> list[Shot]:
    """Read ``0000/0000_000_01_0303morning_0008_0.jpg 0`` lines; the identity is the second column plus `behind`."""
    shots = []
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listing}: cannot be read ({error}); expected {fact('msmt17').raw}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, _, pid = line.strip().rpartition(" ")
        file = folder / path
        if not pid.isdecimal() or not re.fullmatch(r"\d+/\d{4}_\d{3}_\d{2}_[^/]+", path):
            raise DataError(f"{listing}:{number}: expected '0000/0000_000_01_0303morning_0008_0.jpg 0', got '{line}'")
        if not file.is_file():
            raise DataError(f"{listing}:{number}: there is no file {file}")
        shots.append(Shot(file, int(pid) + behind, file.name))
    if not shots:
        raise DataError(f"{listing}: names no image")
    return shots


def read_cuhk01(raw: Path, rng: np.random.Generator) -> list[Person]:  # noqa: ARG001 - the signature of all of these
    """Read CUHK01: images 001 and 002 of a person are camera A, 003 and 004 camera B."""
    return _grouped(
        below(raw, "campus", "CUHK01/campus"), r"(\d{4})(00[1-4])", "cuhk01", lambda view: (int(view) - 1) // 2
    )


def read_viper(raw: Path, rng: np.random.Generator) -> list[Person]:  # noqa: ARG001
    """Read VIPeR: the n-th images of both cameras, sorted by name, show the same person."""
    raw = below(raw, "VIPeR")
    a, b = (image_files(raw / camera, fact("viper").raw) for camera in ("cam_a", "cam_b"))
    strangers = [(x.name, y.name) for x, y in zip(a, b, strict=False) if x.name.split("_")[0] != y.name.split("_")[0]]
    if len(a) != len(b) or strangers:
        where = f", first {strangers[0][0]} and {strangers[0][1]}" if strangers else ""
        raise DataError(f"{raw}: cam_a has {len(a)} and cam_b {len(b)} images, which do not pair up{where}")
    return [Person(number, ((x,), (y,))) for number, (x, y) in enumerate(zip(a, b, strict=True), start=1)]


def read_3dpes(raw: Path, rng: np.random.Generator) -> list[Person]:
    """Read 3DPeS: a random half of each person's views, rounded down, becomes camera 1, the rest camera 2."""
    folder = below(raw, "RGB", "3DPeS_ReId_Snap/RGB", "3DPeS/RGB")
    people: dict[int, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for file in image_files(folder, fact("3dpes").raw):
        match = re.match(r"(\d+)_(\d+)_", file.name)
        if match is None:
            raise DataError(f"{file}: name gives no person and view; expected {fact('3dpes').raw}")
        people[int(match[1])][match[2]].append(file)
    persons = []
    for number, pid in enumerate(sorted(people), start=1):
        views = list(people[pid].values())
        order = rng.permutation(len(views))
        halves = order[: len(views) // 2], order[len(views) // 2 :]
        one, two = (tuple(file for i in half for file in views[i]) for half in halves)
        persons.append(Person(number, (one, two)))
    return persons


def read_ilids(raw: Path, rng: np.random.Generator) -> list[Person]:
    """Read i-LIDS (QMUL): a random half of each person's images, rounded down, becomes camera 1, the rest camera 2."""
    folder = below(raw, "Persons", "i-LIDS_Pedestrian/Persons", "i-LIDS/Persons")
    persons = []
    for whole in _grouped(folder, r"(\d{4})(\d{3})", "ilids", lambda _: 0, cameras=1):
        files = whole.cameras[0]
        order = rng.permutation(len(files))
        halves = order[: len(files) // 2], order[len(files) // 2 :]
        one, two = (tuple(files[i] for i in half) for half in halves)
        persons.append(Person(whole.pid, (one, two)))
    return persons


def read_ilids_vid(raw: Path, rng: np.random.Generator) -> list[Person]:  # noqa: ARG001
    """Read the single-shot part of iLIDS-VID: one image per person and camera."""
    folder = below(raw, "images", "i-LIDS-VID/images")
    expected = fact("ilids-vid").raw
    names = sorted(p.name for p in (folder / "cam1").glob("person*") if (folder / "cam2" / p.name).is_dir())
    if not names:
        raise DataError(f"{folder}: no person in both cam1 and cam2; expected {expected}")
    return [
        Person(number, tuple(tuple(image_files(folder / camera / name, expected)) for camera in ("cam1", "cam2")))
        for number, name in enumerate(names, start=1)
    ]


def _grouped(folder: Path, pattern: str, name: str, camera: Callable[[str], int], *, cameras: int = 2) -> list[Person]:
    """Group files by the first group of `pattern` (the person); `camera` maps the second one to 0, 1, ..."""
    people: dict[int, list[list[Path]]] = defaultdict(lambda: [[] for _ in range(cameras)])
    for file in image_files(folder, fact(name).raw):
        match = re.fullmatch(pattern, file.stem)
        if match is None:
            raise DataError(f"{file}: unexpected name; expected {fact(name).raw}")
        people[int(match[1])][camera(match[2])].append(file)
    return [Person(n, tuple(map(tuple, people[pid]))) for n, pid in enumerate(sorted(people), start=1)]


PERSON_READERS: Final = {
    "cuhk01": read_cuhk01,
    "viper": read_viper,
    "3dpes": read_3dpes,
    "ilids": read_ilids,
    "ilids-vid": read_ilids_vid,
}
"""Releases without a split of their own."""

SPLIT_READERS: Final = {
    "market": lambda raw: read_market(below(raw, "Market-1501-v15.09.15")),
    "duke": lambda raw: read_market(below(raw, "DukeMTMC-reID")),
    "cuhk03-np-detected": lambda raw: read_cuhk03(raw, "detected"),
    "cuhk03-np-labeled": lambda raw: read_cuhk03(raw, "labeled"),
    "msmt17": read_msmt17,
}
"""Releases whose split is part of them."""
