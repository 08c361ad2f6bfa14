"""``fedmpi config``: look at run descriptions without running them; imports neither torch nor mpi4py."""

from __future__ import annotations

import click

from fedmpi.errors import ConfigError

_OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a key; may be given many times."
)


@click.group("config")
def config_group() -> None:
    """Show, check and explain run descriptions."""


@config_group.command("show")
@click.argument("config", required=False)
@_OVERRIDES
def show(config: str | None, overrides: tuple[str, ...]) -> None:
    """Print every key of CONFIG (a file or a shipped name; quickstart by default) as a run would use it."""
    from fedmpi.config import load_config, to_yaml  # noqa: PLC0415  (pydantic would double the time of --help)

    resolved = load_config(config, overrides)
    click.echo(f"# digest: {resolved.digest()}")
    click.echo(to_yaml(resolved), nl=False)
    for warning in resolved.warnings():
        click.echo(f"note: {warning}", err=True)


@config_group.command("check")
@click.argument("configs", nargs=-1, required=True, metavar="CONFIG...")
@_OVERRIDES
def check(configs: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Look for mistakes in each CONFIG (a file or a shipped name) and name all of them."""
    from fedmpi.config import load_config  # noqa: PLC0415  (as above)

    mistakes = []
    for name in configs:
        try:
            resolved = load_config(name, overrides)
        except ConfigError as error:
            mistakes.append(str(error))
            continue
        click.echo(f"ok: {name} (digest {resolved.digest()[:12]})")
        for warning in resolved.warnings():
            click.echo(f"note: {name}: {warning}", err=True)
    if mistakes:
        raise ConfigError("\n".join(mistakes))


@config_group.command("explain")
@click.argument("key")
def explain(key: str) -> None:
    """Print what KEY (section.key, or a whole section) means, its type, unit, default and source."""
    from fedmpi.config.reference import explain as explained  # noqa: PLC0415  (as above)

    click.echo(explained(key))
