"""From a release to a client in the processed layout: planned as a whole, placed file by file, shown when it is whole.

Everything is put into ``<root>/.<client>.partial`` and moved to ``<root>/<client>`` by one rename at the end. So an
interrupted conversion leaves no half client, and the next one goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from fedmpi.errors import DataError
from fedmpi.rawdata import cuhk03_mat, readers, splits
from fedmpi.rawdata.manifest import NAME as MANIFEST
from fedmpi.rawdata.manifest import read_manifest, write_atomically, write_manifest
from fedmpi.rawdata.shots import Selection
from fedmpi.seeding import Stream, generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fedmpi.rawdata.facts import Fact
    from fedmpi.rawdata.shots import Shot

Way = Literal["link", "symlink", "copy"]
_PLAN, _UNFINISHED = ".plan", ".unfinished-"


@dataclass(frozen=True)
class Plan:
    """What goes where.

    Attributes
    ----------
    shots
        The image of every file below the client's folder, as ``pytorch/train_all/0002/0002_c1s1_000451_03.jpg``.
    digest
        sha256 of these names and of where each comes from, relative to the release.
    """

    shots: dict[str, Shot]
    digest: str


def select(raw: Path, entry: Fact, seed: int, split: Path | None = None) -> Selection:
    """Return the images of the three subsets of a release.

    Parameters
    ----------
    raw
        Folder of the release, or a folder in the DGD format (``meta.json`` and ``split.json``).
    seed
        Of the split and the artificial cameras, where there are such.
    split
        A ``split.json`` for sets whose release has none; its numbers count the persons of `raw` in sorted order, or the
        identities of its ``meta.json``.

    Raises
    ------
    DataError
        `raw` is not what the table of facts says, or `split` does not fit.
    """
    if not raw.is_dir():
        raise DataError(f"{raw} is not a folder; expected the release of {entry.name}: {entry.raw}")
    rng = generator(seed, Stream.DATA_SPLIT)
    if (raw / "meta.json").is_file():
        persons = splits.read_meta(raw)
        return splits.choose(persons, **splits.read_split(split or raw / "split.json", len(persons)))
    if entry.name in readers.PERSON_READERS:
        persons = readers.PERSON_READERS[entry.name](raw, rng)
        if split is not None:
            return splits.choose(persons, **splits.read_split(split, len(persons)))
        return splits.draw(persons, entry, rng)
    if split is not None:
        raise DataError(f"{split}: {entry.name} takes no split file without the meta.json that it counts in")
    return splits.prid(raw, rng) if entry.name == "prid" else readers.SPLIT_READERS[entry.name](raw)


def plan(raw: Path, selection: Selection) -> Plan:
    """Return where every image goes; DataError when a subset is empty or two images claim one place."""
    shots: dict[str, Shot] = {}
    for subset, members in selection.subsets().items():
        if not any(shot.pid >= 0 for shot in members):
            raise DataError(f"{raw}: no image for {subset}")
        for shot in members:
            target = f"pytorch/{subset}/{_folder(shot)}/{shot.name}"
            if target in shots:
                raise DataError(f"{raw}: both {shots[target].source} and {shot.source} would become {target}")
            shots[target] = shot
    digest = hashlib.sha256()
    for target, shot in sorted(shots.items()):
        origin = os.path.relpath(shot.source, raw)
        digest.update(f"{target}\t{origin}\t{shot.member}\n".encode("utf-8", "surrogateescape"))
    return Plan(dict(sorted(shots.items())), digest.hexdigest())


def _folder(shot: Shot) -> str:
    small = shot.name.startswith("cam_")
    return str(shot.pid) if shot.pid < 0 else f"{shot.pid:0{5 if small else 4}d}"


def prepare(
    raw: Path,
    entry: Fact,
    root: Path,
    *,
    seed: int = 0,
    way: Way = "link",
    split: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Make ``<root>/<client>`` of a release; return False when it was there already, from the same plan.

    Parameters
    ----------
    way
        ``link``: hard links, copies where the file system allows none; ``symlink``: symbolic links to absolute paths;
        ``copy``. Images of a .mat file are written as PNG.
    progress
        Called with the number of files placed and the number of all files.

    Raises
    ------
    DataError
        The release cannot be read, `root` cannot be written, another client of that name is there, or another process
        prepares it at the moment.
    """
    wanted = plan(raw, select(raw, entry, seed, split))
    final, partial = root / entry.client, root / f".{entry.client}.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial):
            if final.exists():
                _check_same(final, wanted)
                return False
            _resume(partial, wanted)
            _place_all(partial, wanted, way, progress or (lambda _done, _total: None))
            write_manifest(partial, dataset=entry.name, seed=seed, plan=wanted.digest)
            (partial / _PLAN).unlink()
            partial.rename(final)
            _sync(root)
    except OSError as error:
        raise DataError(f"{root}: cannot prepare {entry.client}: {error.strerror or error}") from error
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder`; an empty one is removed at the end."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another process is preparing this client; wait for it") from None
        yield
    finally:
        os.close(handle)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _check_same(final: Path, wanted: Plan) -> None:
    manifest = read_manifest(final)
    if manifest is None or manifest.plan != wanted.digest:
        raise DataError(
            f"{final}: exists, and not from the same release, seed and split; nothing is overwritten: "
            "choose another --out or move it away"
        )
    gone = next((name for name in wanted.shots if not (final / name).is_file()), None)
    if gone is not None:
        raise DataError(f"{final}: {gone} has vanished since it was prepared; move the folder away and prepare anew")


def _resume(partial: Path, wanted: Plan) -> None:
    """Keep what an interrupted run of the same plan has placed; remove everything else."""
    note = partial / _PLAN
    if not note.is_file() or note.read_text(encoding="ascii") != wanted.digest:
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        write_atomically(note, wanted.digest.encode("ascii"))
    for leftover in partial.rglob(f"{_UNFINISHED}*"):
        leftover.unlink()
    (partial / MANIFEST).unlink(missing_ok=True)


def _place_all(partial: Path, wanted: Plan, way: Way, progress: Callable[[int, int], None]) -> None:
    for folder in {(partial / name).parent for name in wanted.shots}:
        folder.mkdir(parents=True, exist_ok=True)
    missing = [(partial / name, shot) for name, shot in wanted.shots.items() if not (partial / name).is_file()]
    done, total = len(wanted.shots) - len(missing), len(wanted.shots)
    inside = [(target, shot) for target, shot in missing if shot.member]
    pixels = cuhk03_mat.images(inside[0][1].source, [shot.member for _, shot in inside]) if inside else iter(())
    for target, shot in missing:
        temporary = target.with_name(f"{_UNFINISHED}{target.name}")
        if shot.member:
            Image.fromarray(next(pixels)).save(temporary, format="PNG")
        else:
            _place(shot.source, temporary, way)
        temporary.rename(target)
        done += 1
        progress(done, total)


def _place(source: Path, target: Path, way: Way) -> None:
    real = source.resolve()
    if way == "symlink":
        target.symlink_to(real)
        return
    if way == "link":
        try:
            target.hardlink_to(real)
        except OSError:  # another file system, one without hard links, or too many of them
            way = "copy"
    if way == "copy":
        shutil.copyfile(real, target)


def _sync(folder: Path) -> None:
    """Make the rename last: a directory is written to disk like a file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
