"""Is what lies on the disk the published data set? Counts, readability, copies, leaks between training and test."""

from __future__ import annotations

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from fedmpi.errors import DataError
from fedmpi.rawdata.facts import FACTS, Count, Fact, fact_of_client
from fedmpi.rawdata.manifest import Manifest, checksum, read_manifest, write_manifest
from fedmpi.rawdata.shots import SUBSETS
from fedmpi.reid.images import FilePixels
from fedmpi.reid.layouts import SUFFIXES, Entry, Folder, list_subset

if TYPE_CHECKING:
    from collections.abc import Iterable

Level = Literal["error", "warning", "note"]
EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """Something that a person should know: an error makes the client unfit or not the published one."""

    level: Level
    text: str
    examples: tuple[str, ...] = ()


@dataclass
class Report:
    """What was found about one client; `as_json` gives plain values."""

    client: str
    dataset: str = ""
    digest: str = ""
    cameras: list[int] = field(default_factory=list)
    found: dict[str, Count] = field(default_factory=dict)
    expected: dict[str, Count] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.level != "error" for finding in self.findings)

    def say(self, level: Level, text: str, examples: Iterable[str] = ()) -> None:
        """Add a finding with the first few examples."""
        self.findings.append(Finding(level, text, tuple(list(examples)[:EXAMPLES])))

    def as_json(self) -> dict[str, object]:
        """Return the report as JSON values."""
        return {"ok": self.ok, **asdict(self)}


def verify_client(folder: Folder, max_megapixels: float, *, write: bool = False) -> Report:
    """Look at every image of a client.

    Parameters
    ----------
    folder
        As `fedmpi.reid.layouts.find_folders` gives it.
    max_megapixels
        Larger images are reported as unreadable, as training would refuse them.
    write
        Write a ``manifest.json`` when there is none and nothing is wrong.
    """
    report = Report(folder.name)
    manifest = _manifest(report, folder)
    entry = _fact(folder, manifest)
    report.dataset = entry.name if entry else ""
    subsets = _subsets(report, folder)
    _passed_over(report, folder)
    if len(subsets) == len(SUBSETS):
        _count(report, subsets, entry)
        _labels(report, subsets, entry)
    files = _contents(report, folder, subsets, max_megapixels)
    relative = {os.path.relpath(path, folder.path): value for path, value in files.items()}
    if manifest is not None:
        _compare(report, manifest, relative)
    elif write and folder.processed and report.ok:
        manifest = write_manifest(folder.path, dataset=report.dataset, files=relative)
    report.digest = manifest.digest() if manifest else Manifest("", None, None, relative).digest()
    return report


def _manifest(report: Report, folder: Folder) -> Manifest | None:
    try:
        manifest = read_manifest(folder.path)
    except DataError as error:
        report.say("error", str(error))
        return None
    if manifest is None:
        report.say("note", "no manifest.json, so nothing to compare checksums with (--write-manifest makes one)")
    return manifest


def _fact(folder: Folder, manifest: Manifest | None) -> Fact | None:
    named = next((e for e in FACTS if manifest is not None and e.name == manifest.dataset), None)
    return named or fact_of_client(folder.name)


def _subsets(report: Report, folder: Folder) -> dict[str, list[Entry]]:
    subsets = {}
    for index, subset in enumerate(SUBSETS):
        try:
            subsets[subset] = list_subset(folder, index)
        except DataError as error:
            report.say("error", str(error))
    return subsets


def _passed_over(report: Report, folder: Folder) -> None:
    """Report what is called like an image and is no regular file: folders, broken links, loops of links."""
    strange = []
    for index in range(len(SUBSETS)):
        places = [folder.subset(index)]
        if folder.processed and places[0].is_dir():
            places = sorted(p for p in places[0].iterdir() if p.is_dir())
        for place in places:
            strange += [
                p
                for p in sorted(place.iterdir())
                if p.suffix.lower() in SUFFIXES and p.name[0] != "." and not p.is_file()
            ]
    if strange:
        names = (os.path.relpath(path, folder.path) for path in strange)
        report.say("warning", f"{len(strange)} named like images are no files and are passed over", names)


def _count(report: Report, subsets: dict[str, list[Entry]], entry: Fact | None) -> None:
    for subset, entries in subsets.items():
        report.found[subset] = Count(len({e.pid for e in entries if e.pid >= 0}), len(entries))
    if entry is None:
        report.say("note", "not one of the published sets by its name, so no counts to compare with")
        return
    report.expected = entry.counts()
    for subset, expected in report.expected.items():
        found = report.found[subset]
        if found == expected:
            continue
        people = found.identities != expected.identities and subset != "query"  # somebody may lack an artificial camera
        exact = subset not in entry.drawn or people
        text = (
            f"{subset}: {found.identities} identities / {found.images} images, "
            f"published are {expected.identities} / {expected.images}"
        )
        report.say("error" if exact else "note", text if exact else f"{text}; these depend on the split that was drawn")


def _labels(report: Report, subsets: dict[str, list[Entry]], entry: Fact | None) -> None:
    train, query, gallery = (subsets[name] for name in SUBSETS)
    both = {e.pid for e in train} & {e.pid for e in (*query, *gallery) if e.pid > 0}
    if both:
        report.say("error", f"{len(both)} identities are in both training and test", map(str, sorted(both)))
    seen = {e.camid for entries in subsets.values() for e in entries}
    report.cameras = sorted(seen)
    if entry is not None and (missing := sorted(set(range(1, entry.cameras + 1)) - seen)):
        report.say("error", f"no image of camera {', '.join(map(str, missing))} of {entry.cameras}")
    views: dict[int, set[int]] = defaultdict(set)
    for e in train:
        views[e.pid].add(e.camid)
    single = sum(len(cameras) == 1 for cameras in views.values())
    if single:
        report.say("note", f"{single} of {len(views)} training identities were seen by one camera only")
    answers: dict[int, set[int]] = defaultdict(set)
    for e in gallery:
        answers[e.pid].add(e.camid)
    lost = sum(not answers.get(e.pid, set()) - {e.camid} for e in query)
    if lost:
        report.say("warning", f"{lost} of {len(query)} queries have no match by another camera and are not scored")


def _contents(
    report: Report, folder: Folder, subsets: dict[str, list[Entry]], max_megapixels: float
) -> dict[str, tuple[str, int]]:
    """Decode and hash every image; report what cannot be read and what is there twice. Return checksums by path."""
    paths = [entry.path for entries in subsets.values() for entry in entries]
    subset_of = {entry.path: subset for subset, entries in subsets.items() for entry in entries}
    pixels = FilePixels(tuple(paths), folder.name, max_megapixels)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = list(pool.map(lambda i: _unreadable(pixels, i), range(len(paths))))
        hashes = list(pool.map(_hash, paths))
    bad = [f"{os.path.relpath(p, folder.path)}: {r}" for p, r in zip(paths, reasons, strict=True) if r]
    if bad:
        report.say("error", f"{len(bad)} of {len(paths)} images cannot be read", bad)
    files = {path: found for path, found in zip(paths, hashes, strict=True) if found is not None}
    _copies(report, folder, files, subset_of)
    return files


def _unreadable(pixels: FilePixels, index: int) -> str:
    try:
        pixels.read(index)
    except DataError as error:
        return str(error).partition(": cannot be read as an image: ")[2]
    return ""


def _hash(path: str) -> tuple[str, int] | None:
    from pathlib import Path  # noqa: PLC0415 - a type elsewhere in this module

    try:
        return checksum(Path(path))
    except OSError:
        return None


def _copies(report: Report, folder: Folder, files: dict[str, tuple[str, int]], subset_of: dict[str, str]) -> None:
    same: dict[str, list[str]] = defaultdict(list)
    for path, (digest, _) in files.items():
        same[digest].append(path)
    groups = [group for group in same.values() if len(group) > 1]
    leaks = [g for g in groups if "train_all" in {subset_of[p] for p in g} and len({subset_of[p] for p in g}) > 1]
    for level, chosen, text in (
        ("error", leaks, "images are byte for byte in both training and test"),
        ("warning", [g for g in groups if g not in leaks], "images exist more than once, byte for byte"),
    ):
        if chosen:
            examples = (" = ".join(os.path.relpath(path, folder.path) for path in group) for group in chosen)
            report.say("error" if level == "error" else "warning", f"{len(chosen)} {text}", examples)


def _compare(report: Report, manifest: Manifest, found: dict[str, tuple[str, int]]) -> None:
    for names, text in (
        (manifest.files.keys() - found.keys(), "files of manifest.json are missing"),
        (found.keys() - manifest.files.keys(), "images are not in manifest.json"),
        ({n for n in found.keys() & manifest.files.keys() if found[n] != manifest.files[n]}, "files have changed"),
    ):
        if names:
            report.say("error", f"{len(names)} {text}", sorted(names))
