"""``fedmpi evaluate``: scores of a saved model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedmpi.config import RunConfig
    from fedmpi.reid.evaluation import RetrievalScore

PLAIN = "fedklpr"
"""The shipped description that is used for a model without one."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", "root", type=click.Path(path_type=Path), help="Folder of clients, instead of the run's own.")
@click.option("--client", "clients", multiple=True, metavar="NAME", help="Only this client; may be repeated.")
@click.option("--config", "description", metavar="CONFIG", help="Run description; default: that of the model's run.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As in fedmpi train.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for programs instead of text.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON object to this new file as well.")
def evaluate(
    model: Path,
    root: Path | None,
    clients: tuple[str, ...],
    description: str | None,
    overrides: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - click passes flags so
    out: Path | None,
) -> None:
    """Score MODEL, a file of weights, on the query and gallery images of clients.

    Image size and protocol are those of config.yaml beside the model (or above it, for clients/NAME.safetensors), else
    those of the shipped configuration fedklpr. The clients need not have taken part in the training.
    """
    from fedmpi.errors import ConfigError  # noqa: PLC0415 - help stays fast
    from fedmpi.evaluate import evaluate_file  # noqa: PLC0415

    if out is not None and out.exists():
        raise ConfigError(f"--out: {out} exists; nothing is overwritten")
    config = settings(description or _beside(model), root, clients, overrides)
    table = None if as_json else Table(config)
    scores = evaluate_file(model, config, table)
    content = {"model": model.name, **scores.as_json()}
    text = json.dumps(content, indent=2, allow_nan=False)
    if out is not None:
        _write_new(out, text)
    if as_json:
        click.echo(text)
    else:
        click.echo(f"{model.name} ({scores.arch}, sha256 {scores.model_sha256})\nprotocol: {scores.protocol}")


def settings(description: str, root: Path | None, clients: Sequence[str], overrides: Sequence[str]) -> RunConfig:
    """Return the description with the clients that were asked for; with ``root``, all of its clients are."""
    from fedmpi.config import load_config  # noqa: PLC0415

    changes = list(overrides)
    if root is not None:
        changes += [f"data.root={json.dumps(str(root))}", "data.split=null", "data.clients=[]", "data.ide=off"]
    if clients:
        changes += [f"data.clients={json.dumps(list(clients))}", "data.ide=off"]
    return load_config(description, changes)


def _beside(model: Path) -> str:
    """Return the run description that lies with a model, else the plain one."""
    places = [model.parent / "config.yaml", model.parent.parent / "config.yaml"]
    return str(next((place for place in places if place.is_file()), PLAIN))


def _write_new(path: Path, text: str) -> None:
    from fedmpi.errors import DataError  # noqa: PLC0415

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"{text}\n")
    except OSError as error:
        raise DataError(f"--out: {path} cannot be written: {error.strerror}") from error


class Table:
    """Prints a head, and a line for each client when it is scored."""

    def __init__(self, config: RunConfig) -> None:
        self._config, self._begun = config, False

    def __call__(self, name: str, score: RetrievalScore) -> None:
        """Print the line of a client."""
        if not self._begun:
            ranks = "".join(f"{f'rank-{rank}':>9}" for rank in score.cmc)
            click.echo(f"{'client':<22}{'queries':>8}{'skipped':>8}{'mAP':>9}{ranks}   (per cent)")
            self._begun = True
        values = "".join(f"{100 * value:9.1f}" for value in (score.mean_ap, *score.cmc.values()))
        click.echo(f"{name:<22}{score.queries:>8}{score.skipped:>8}{values}")
