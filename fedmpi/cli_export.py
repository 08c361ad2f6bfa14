"""``fedmpi export``: a model of a finished run as a file for others."""

from __future__ import annotations

from pathlib import Path

import click

from fedmpi.wording import size


@click.command("export")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--client", default="global", show_default=True, metavar="NAME|global", help="Whose model.")
@click.option(
    "--format", "form", default="safetensors", show_default=True, type=click.Choice(["safetensors", "torch", "onnx"])
)
@click.option("--sparse", is_flag=True, help="Leave out the zeros of pruned weights (safetensors, torch).")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file to write.")
def export(run: Path, client: str, form: str, sparse: bool, out: Path) -> None:  # noqa: FBT001 - click's way
    """Write a model of RUN (a finished run's folder) to a file, and check that it gives the same embeddings.

    The file says what goes in (size, mean, std) and what comes out. docs/export.md tells how to load each format.
    """
    from fedmpi.exporting import export as write  # noqa: PLC0415 - help stays fast

    done = write(run, client, form, out, sparse=sparse)
    match = "the same embeddings" if done.difference == 0 else f"embeddings equal to {done.difference:.1g}"
    click.echo(f"{done.path}: {size(done.size)} ({100 * done.size / done.dense:.0f} % of dense), {match}")
