"""``fedmpi data``: make, convert and check data sets; imports neither torch nor mpi4py before it works."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmpi import cli_rawdata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedmpi.config import RunConfig
    from fedmpi.reid.synthetic import Slot

COLUMNS = {"cameras": 7, "train": 10, "query": 10, "gallery": 10, "images": 7}
"""Width of the columns; train, query and gallery hold identities/images."""


@click.group("data")
def data_group() -> None:
    """Make, convert and check data sets to train on."""


data_group.add_command(cli_rawdata.list_datasets)
data_group.add_command(cli_rawdata.prepare)
data_group.add_command(cli_rawdata.verify)


@data_group.command("synthesize")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("config", required=False, metavar="[CONFIG]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, as in --set data.height=256."
)
def synthesize(folder: Path, config: str | None, overrides: tuple[str, ...]) -> None:
    """Write the embedded drawn people to DIR as image files.

    DIR gets the processed layout, <client>/pytorch/{train_all,query,gallery}/<identity>/<image>.png, with the people,
    sizes and clients that CONFIG (a file or a shipped name; quickstart by default) would draw in memory. Training from
    DIR gives the same result to the bit.
    """
    from fedmpi.config import load_config  # noqa: PLC0415 - help stays fast
    from fedmpi.reid.synthetic import selected, write_tree  # noqa: PLC0415

    settings = load_config(config, overrides)
    names = selected(settings.data.clients)
    total = write_tree(folder, settings.data, settings.run.seed, Table(settings, max(map(len, names))))
    stored = sum(file.stat().st_size for file in folder.rglob("*.png"))
    click.echo(f"\n{total} images of {len(names)} clients, {stored / 1e6:.1f} MB, in {folder}/")
    click.echo(f"train on them: {training_command(folder, config, overrides, ranks=len(names) + 1)}")


class Table:
    """Prints a line when the images of a client are written, and a head before the first one."""

    def __init__(self, settings: RunConfig, width: int) -> None:
        self._settings, self._width, self._begun = settings, width, False

    def __call__(self, name: str, count: int) -> None:
        """Print the line of client ``name``, which has ``count`` images."""
        from fedmpi.reid.synthetic import plan_client  # noqa: PLC0415 - help stays fast

        if not self._begun:
            self._head()
        slots = plan_client(self._settings.data, self._settings.run.seed, name)
        click.echo(f"  {name:<{self._width}}  {'  '.join(census(slots))}  {count:>7}")

    def _head(self) -> None:
        data, self._begun = self._settings.data, True
        click.echo(f"drawn people of {data.height}x{data.width} pixels, seed {self._settings.run.seed}")
        click.echo(f"  {'':<{self._width}}  {'':>7}  {'identities/images':>34}")
        columns = "  ".join(f"{name:>{width}}" for name, width in COLUMNS.items())
        click.echo(f"  {'client':<{self._width}}  {columns}")


def census(slots: Sequence[Slot]) -> list[str]:
    """Return the cells of a client: number of cameras, then identities/images of train, query and gallery."""
    cells = [str(len({slot.camid for slot in slots})).rjust(COLUMNS["cameras"])]
    for subset in ("train_all", "query", "gallery"):
        members = [slot for slot in slots if slot.subset == subset]
        cells.append(f"{len({slot.pid for slot in members})}/{len(members)}".rjust(COLUMNS["train"]))
    return cells


def training_command(folder: Path, config: str | None, overrides: Sequence[str], *, ranks: int) -> str:
    """Return the command that trains on what was written, as one would type it."""
    words = ["mpirun", "-n", str(ranks), "fedmpi", "train", *([config] if config else [])]
    for override in (*overrides, f"data.root={folder}"):
        words += ["--set", override]
    return shlex.join(words)
