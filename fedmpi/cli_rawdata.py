"""``fedmpi data list|prepare|verify``: the published data sets; imports neither torch nor mpi4py."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from fedmpi.rawdata.facts import Fact
    from fedmpi.rawdata.verify import Report

EXIT_FINDINGS = 1


@click.command("list")
@click.argument("name", required=False)
def list_datasets(name: str | None) -> None:
    """List the published data sets, or all that is known of NAME: layout, counts, rules, source, terms."""
    from fedmpi.rawdata.facts import FACTS, fact  # noqa: PLC0415 - help stays fast

    if name is not None:
        click.echo(_described(fact(name)))
        return
    click.echo(f"{'--dataset':<20}{'client':<20}{'cams':>4}{'train':>14}{'query':>14}{'gallery':>14}")
    for entry in FACTS:
        cells = "".join(f"{f'{c.identities}/{c.images}':>14}" for c in entry.counts().values())
        click.echo(f"{entry.name:<20}{entry.client:<20}{entry.cameras:>4}{cells}")


def _described(entry: Fact) -> str:
    counts = (f"{name} {c.identities} identities / {c.images} images" for name, c in entry.counts().items())
    rows = {
        "client": entry.client,
        "cameras": str(entry.cameras),
        "counts": ", ".join(counts),
        "release": entry.raw,
        "camera": entry.camera_rule,
        "split": entry.split_rule,
        "cite": entry.citation,
        "obtain": entry.obtain,
        "terms": entry.terms,
    }
    return "\n".join([entry.name, *(f"  {name:<8} {text}" for name, text in rows.items())])


@click.command()
@click.argument("raw", type=click.Path(path_type=Path))
@click.option("--dataset", required=True, metavar="NAME", help="Which one it is; fedmpi data list shows the names.")
@click.option("--out", "root", required=True, type=click.Path(path_type=Path), help="Folder of all clients: data.root.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of split and artificial cameras.")
@click.option(
    "--how",
    default="link",
    show_default=True,
    type=click.Choice(["link", "symlink", "copy"]),
    help="How files get there.",
)
@click.option(
    "--split",
    type=click.Path(path_type=Path),
    help="Instead of a drawn split: a split.json of the DGD format, or the .mat of iLIDS-VID's authors.",
)
def prepare(
    raw: Path, dataset: str, root: Path, seed: int, how: Literal["link", "symlink", "copy"], split: Path | None
) -> None:
    """Make a client of the release of a data set in folder RAW.

    ROOT/<client> gets the processed layout that data.root expects, and a manifest.json with checksums. It appears when
    it is whole: a conversion that was interrupted goes on where it stopped, and one that is done is not done again.
    """
    from fedmpi.rawdata.facts import fact  # noqa: PLC0415
    from fedmpi.rawdata.manifest import read_manifest  # noqa: PLC0415
    from fedmpi.rawdata.prepare import prepare as run  # noqa: PLC0415

    entry = fact(dataset)
    made = run(raw, entry, root, seed=seed, way=how, split=split, progress=_progress())
    manifest = read_manifest(root / entry.client)
    if manifest is None:  # cannot be: prepare wrote or read it
        message = f"{root / entry.client} has no manifest"
        raise RuntimeError(message)
    click.echo(f"{root / entry.client}: {len(manifest.files)} images{'' if made else ', prepared before'}")
    click.echo(f"sha256 of all: {manifest.digest()}")
    published = sum(count.images for count in entry.counts().values())
    if len(manifest.files) != published and not entry.drawn:
        click.echo(f"note: published are {published} images; is {raw} the whole release of {entry.name}?")
    click.echo(f"next: fedmpi data verify {root}")


class _progress:  # noqa: N801 - used like a function
    """Shows on a terminal how many files are placed, ten times a second at most."""

    def __init__(self) -> None:
        self._shown, self._terminal = 0.0, sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._terminal and (done == total or now - self._shown > 0.1):
            click.echo(f"\r{done}/{total} images", nl=done == total, err=True)
            self._shown = now


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--client", "names", multiple=True, metavar="NAME", help="Only this client; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for programs instead of text.")
@click.option(
    "--write-manifest", is_flag=True, help="Write manifest.json for clients without one, if nothing is wrong."
)
@click.option(
    "--max-megapixels",
    default=8.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="As data.max_megapixels.",
)
def verify(
    root: Path,
    names: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - click passes flags so
    write_manifest: bool,  # noqa: FBT001
    max_megapixels: float,
) -> int:
    """Check the clients below ROOT against the published tables and against their manifests.

    Reads every image. Prints file names: keep its output where the images may be. Leaves with code 1 when something is
    wrong.
    """
    from fedmpi.errors import DataError  # noqa: PLC0415
    from fedmpi.rawdata.verify import verify_client  # noqa: PLC0415
    from fedmpi.reid.layouts import find_folders  # noqa: PLC0415

    folders = find_folders(root, only=names)
    unknown = [name for name in names if name not in {folder.name for folder in folders}]
    if unknown:
        there = ", ".join(folder.name for folder in folders)
        raise DataError(f"--client: no client {', '.join(unknown)} in {root}; there are {there}")
    reports = []
    for folder in folders:
        if not names or folder.name in names:
            report = verify_client(folder, max_megapixels, write=write_manifest)
            reports.append(report)
            if not as_json:
                click.echo("\n".join(_lines(report)))
    if as_json:
        content = {"ok": all(r.ok for r in reports), "clients": [r.as_json() for r in reports]}
        click.echo(json.dumps(content, indent=2))
    return 0 if all(report.ok for report in reports) else EXIT_FINDINGS


def _lines(report: Report) -> list[str]:
    """Return a report as lines of text; names that are no UTF-8 are shown with escapes."""
    known = f" ({report.dataset})" if report.dataset else ""
    lines = [f"{report.client}{known}: {'good' if report.ok else 'NOT GOOD'}"]
    for subset, found in report.found.items():
        wanted = report.expected.get(subset)
        published = f"   published {wanted.identities} / {wanted.images}" if wanted else ""
        lines.append(f"  {subset:<10}{found.identities:>6} identities {found.images:>7} images{published}")
    lines.append(f"  cameras   {', '.join(map(str, report.cameras)) or '-'}")
    lines.append(f"  sha256    {report.digest}")
    for finding in report.findings:
        lines.append(f"  {finding.level}: {finding.text}")
        lines += [f"    {example}" for example in finding.examples]
    return [line.encode("utf-8", "backslashreplace").decode("utf-8") for line in lines]
