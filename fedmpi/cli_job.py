"""``fedmpi job``: print a batch script for SLURM; imports neither torch nor mpi4py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import click

from fedmpi.errors import ConfigError
from fedmpi.slurm.options import JobOptions


class _Job(click.Command):
    """A command that answers an unknown option with all valid ones."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            valid = sorted(name for parameter in self.params for name in parameter.opts if name.startswith("--"))
            message = f"no such option: {error.option_name}; valid: {', '.join(valid)}"
            raise click.UsageError(message, ctx) from error


def _seeds(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Read 0,1,2 as numbers."""
    try:
        return tuple(int(part) for part in text.split(",")) if text is not None else None
    except ValueError as error:
        raise click.BadParameter(f"must be whole numbers with commas, as 0,1,2, got {text!r}") from error


def _options() -> list[click.Option]:
    """Return an option of the command line for every field of `JobOptions`."""
    found = []
    for item in fields(JobOptions):
        many, text = item.name in {"setup", "vary"}, item.metadata["help"]
        kind = int if "int" in str(item.type) and item.name != "seeds" else str
        callback = _seeds if item.name == "seeds" else None
        default = "" if item.default in (None, ()) or many else f" [default: {item.default}]"
        found.append(
            click.Option(
                [f"--{item.name}"], type=kind, multiple=many, default=None, help=text + default, callback=callback
            )
        )
    return found


def _check_variant(config: str | None, overrides: Sequence[str]) -> None:
    """Find out now what would otherwise end a run of the array, after hours in the queue."""
    from fedmpi.config import load_config  # noqa: PLC0415 - help stays fast

    try:
        load_config(config, overrides)
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"--set {overrides[-1]}", f"--vary {overrides[-1]}")) from error


@click.command("job", cls=_Job)
@click.argument("config", required=False, metavar="[CONFIG]")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a key of the run.")
def job(config: str | None, overrides: tuple[str, ...], **given: Any) -> None:  # noqa: ANN401
    """Print an sbatch script that runs CONFIG (a YAML file or a shipped name) and survives preemption.

    Nothing is submitted:  fedmpi job fedklpr --nodes 2 > my.sbatch && sbatch my.sbatch
    """
    from fedmpi.config import load_config  # noqa: PLC0415 - help stays fast
    from fedmpi.slurm import options, script  # noqa: PLC0415 - as above

    chosen = {name: value for name, value in given.items() if value not in (None, ())}
    for line in overrides:
        if "\n" in line:
            raise ConfigError("--set must be one line")
    for line in chosen.get("vary", ()):
        _check_variant(config, (*overrides, line))
    click.echo(script(load_config(config, overrides), config, overrides, options(chosen)), nl=False)


job.params += _options()
