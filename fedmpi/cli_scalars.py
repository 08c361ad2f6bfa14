"""``fedmpi export-scalars``: the numbers of a run for other tools; imports neither torch nor MPI."""

from __future__ import annotations

import csv
from pathlib import Path

import click

from fedmpi.errors import ConfigError

GROUPS = ("rounds", "clients", "layers", "baseline", "messages")
FORMATS = ("csv", "parquet", "tensorboard")


@click.command("export-scalars")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--format", "formats", type=click.Choice(FORMATS), multiple=True, default=("csv",), show_default=True,
    help="May be given many times. Parquet needs fedmpi[parquet]; TensorBoard is needed only to look.",
)  # fmt: skip
@click.option(
    "--group", "groups", type=click.Choice(GROUPS), multiple=True, show_default=True,
    default=("rounds", "clients", "baseline", "messages"), help="What to export; may be given many times.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write to; default: scalars/ beside the run file."
)
def export_scalars(run: Path, formats: tuple[str, ...], groups: tuple[str, ...], out: Path | None) -> None:
    """Export the numbers of RUN (a run folder or run file): its committed rounds, also while it goes on.

    CSV and Parquet: one file per group, one row per round and client, empty where nothing was measured; variables.csv
    tells units and meanings. TensorBoard: one run for the server, one per client; step 0 is the untrained model.
    """
    from fedmpi import scalars  # noqa: PLC0415 - help stays fast
    from fedmpi.record import open_run  # noqa: PLC0415

    writers = {"csv": scalars.write_csv, "parquet": scalars.write_parquet, "tensorboard": scalars.write_tensorboard}
    with open_run(run) as opened:
        folder = out or opened.path.parent / "scalars"
        groups = tuple(group for group in groups if group != "layers" or opened.layers)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = [p for kind in formats for group in groups for p in writers[kind](opened, group, folder)]
            if "csv" in formats:
                written.append(_describe(folder / "variables.csv", scalars.described(opened, groups)))
        except ImportError as error:
            raise ConfigError(str(error)) from error
        except OSError as error:
            message = f"{folder}: cannot be written ({error.strerror}); choose another --out"
            raise ConfigError(message) from error
    for path in written:
        click.echo(str(path))


def _describe(path: Path, rows: object) -> Path:
    """Write what the columns mean."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["group", "variable", "units", "meaning"])
        writer.writerows(rows)  # type: ignore[arg-type]
    return path
