"""What the scripts share: opening runs named on the command line, naming them, and where output goes."""

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Final

import click
import yaml

from fedmpi.record import Run, open_run

IMAGE_FORMATS: Final = ("png", "svg", "pdf")
FORMATS: Final = (*IMAGE_FORMATS, "csv")
OF_A_SEED: Final = frozenset({"run.seed", "run.name"})
"""Keys of the configuration in which the runs of one line of a table may differ."""


class Script(click.Command):
    """A command whose expected errors are one line: a run file that is missing, damaged or of a newer schema."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click has it
        """Run the script."""
        try:
            return super().invoke(ctx)
        except ValueError as error:
            if type(error).__module__ != "fedmpi.errors":  # a bug of ours, which deserves its traceback
                raise
            raise click.ClickException(str(error)) from error


@dataclass(frozen=True)
class Named:
    """A run with the name under which tables and legends show it; ``given`` says whether a person chose the name."""

    label: str
    run: Run
    given: bool = True


class RunType(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.5
    """``PATH`` or ``LABEL=PATH`` of a run folder or run file that has at least one committed round."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Named:  # noqa: ANN401
        """Open the run; it is closed with the context."""
        if isinstance(value, Named):
            return value
        label, path = self._split(str(value))
        try:
            run = open_run(path)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if ctx is not None:
            ctx.call_on_close(run.close)
        if run.rounds == 0:
            self.fail(f"{run.path}: no round is committed yet; there is nothing to show", param, ctx)
        return Named(label or name_of(run), run, given=bool(label))

    @staticmethod
    def _split(text: str) -> tuple[str, str]:
        """Return label and path; a path that exists as it stands has no label."""
        label, sign, path = text.partition("=")
        return (label, path) if sign and label and not Path(text).exists() else ("", text)


run_argument: Final = click.argument("run", type=RunType(), metavar="RUN")


class RunsArgument(click.Argument):
    """Runs, of which the shell expands no pattern behind a label: ``LABEL='runs/a-*'`` names all that it matches."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:  # noqa: ANN401 - as click has it
        """Open the runs."""
        return super().type_cast_value(ctx, value and [text for given in value for text in expanded(given)])


def expanded(text: Any) -> list[Any]:  # noqa: ANN401 - as click has it
    """Return ``LABEL=PATTERN`` as one ``LABEL=PATH`` for every path that matches, anything else as it is."""
    label, sign, pattern = str(text).partition("=")
    if not sign or Path(str(text)).exists() or Path(pattern).exists():
        return [text]
    return [f"{label}={path}" for path in sorted(glob(pattern))] or [text]  # noqa: PTH207 - absolute ones too


runs_argument: Final = click.argument(
    "runs", cls=RunsArgument, type=RunType(), nargs=-1, required=True, metavar="[LABEL=]RUN..."
)
out_option: Final = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write to; default: analysis/ beside the (first) run file.",
)


def format_option(choices: Sequence[str] = FORMATS, default: Sequence[str] = ("png", "csv")) -> Callable[..., Any]:
    """Return the option ``--format``, which may be given many times."""
    return click.option(
        "--format",
        "formats",
        type=click.Choice(choices),
        multiple=True,
        default=default,
        show_default=True,
        help="What to write; may be given many times.",
    )


def script(**settings: Any) -> Callable[[Callable[..., None]], click.Command]:  # noqa: ANN401 - click's own arguments
    """Return the decorator of a script's function."""
    settings.setdefault("context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 100})
    return click.command(cls=Script, **settings)


def folder_for(out: Path | None, run: Run) -> Path:
    """Return the folder that output goes to, and make it."""
    folder = out or run.path.parent / "analysis"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
    return folder


def config_of(run: Run) -> dict[str, Any]:
    """Return the configuration of a run by section; empty when the file has none that can be read."""
    text = run.provenance.get("config", "")
    try:
        loaded = yaml.safe_load(text if isinstance(text, str) else "\n".join(text))
    except yaml.YAMLError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return the same configuration as ``section.key``: value."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        result |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return result


def setting(config: dict[str, Any], key: str, default: Any = None) -> Any:  # noqa: ANN401 - whatever YAML holds
    """Return the value of ``section.key``, or ``default`` where the run's configuration has none."""
    return flat(config).get(key, default)


def name_of(run: Run) -> str:
    """Return what a run calls itself: ``run.name`` of its configuration, or its folder."""
    return str(setting(config_of(run), "run.name") or run.path.resolve().parent.name)


def seed_of(run: Run) -> str:
    """Return the seed of a run as text, ``?`` if the file does not tell."""
    return str(run.provenance.get("seed") or setting(config_of(run), "run.seed", "?"))


def grouped(runs: Sequence[Named]) -> dict[str, list[Named]]:
    """Return runs by label, in the order given; those of one label are taken as seeds of one experiment.

    Raises
    ------
    click.ClickException
        When runs that no person labelled have one name but differ in more than the seed, or when one is given twice.
    """
    groups: dict[str, list[Named]] = {}
    for named in runs:
        groups.setdefault(named.label, []).append(named)
    for label, members in groups.items():
        paths = [named.run.path.resolve() for named in members]
        if len(set(paths)) < len(paths):
            raise click.ClickException(f"{label}: the same run file is given twice")
        _check_alike(label, members)
    return groups


def _check_alike(label: str, members: Sequence[Named]) -> None:
    """Refuse, or where a person gave the label only mention, runs of one label that are not seeds of one experiment."""
    first = flat(config_of(members[0].run))
    for other in members[1:]:
        theirs = flat(config_of(other.run))
        keys = [k for k in sorted(first.keys() | theirs.keys()) if k not in OF_A_SEED and first.get(k) != theirs.get(k)]
        if not keys:
            continue
        text = f"{members[0].run.path} and {other.run.path} differ in {', '.join(keys[:4])}{' ...' * (len(keys) > 4)}"
        if not (members[0].given and other.given):
            raise click.ClickException(
                f"{text}, but both are called {label!r}: name them, as in LABEL=RUN or LABEL='runs/a-*'"
            )
        click.echo(f"note: {text}, and are averaged as {label!r}", err=True)


def same_clients(runs: Sequence[Named]) -> tuple[str, ...]:
    """Return the clients that all runs have; ClickException names the first run that has not."""
    clients: tuple[str, ...] = runs[0].run.clients
    for named in runs[1:]:
        if other := sorted(set(named.run.clients) ^ set(clients)):
            text = f"{', '.join(other[:4])}{' ...' * (len(other) > 4)}"
            raise click.ClickException(f"{named.run.path} and {runs[0].run.path} do not have the same clients: {text}")
    return clients


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; numbers that were not measured are empty cells, floats keep all their digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows([_cell(value) for value in row] for row in rows)
    click.echo(str(path))


def _cell(value: object) -> object:
    value = value.item() if hasattr(value, "item") else value
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def size(count: float) -> str:
    """Return bytes in decimal units, as the field counts them (1 MB = 1e6)."""
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if abs(count) < 1000 or unit == "TB":
            break
    return f"{count:.{1 if unit in {'kB', 'MB'} else 2}f} {unit}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share as a number of percent, ``--`` where it was not measured."""
    return "--" if math.isnan(share) else f"{round(100 * share, digits) + 0.0:.{digits}f}"  # + 0.0: never -0.0


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a table for the terminal; the first ``left`` columns are flush left, numbers flush right."""
    table = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = []
    for row in table:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
