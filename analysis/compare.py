"""Several runs beside one another: the paper-style table per client and mean, with what the communication cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import _common as common
import _quantities as quantities
import _style as style
import _tables as tables
import click
import numpy as np
from _quantities import METRICS, Floats
from _tables import Table, deviation, spread
from matplotlib.figure import Figure

from fedmpi.record import Run

FORMATS: Final = ("md", "tex", *common.FORMATS)
WIDEST: Final = 12
"""More clients than this are left to the CSV file; the tables then show their mean alone."""


@dataclass(frozen=True)
class Line:
    """One line of the table: the runs (seeds) of one label.

    ``scores`` holds, per metric, float64[seeds, clients] in [0, 1]; ``bytes`` float64[seeds], all rounds and clients,
    up and down; ``density`` float64[seeds], the mean final share of prunable parameters kept.
    """

    label: str
    seeds: tuple[str, ...]
    scores: Mapping[str, Floats]
    bytes: Floats
    density: Floats


@common.script()
@common.runs_argument
@common.out_option
@common.format_option(FORMATS, ("md", "tex", "csv", "png"))
@click.option("--baseline", metavar="LABEL", help="Show differences to the runs of this label.")
@click.option(
    "--metric", "metrics", type=click.Choice(list(METRICS)), multiple=True, default=("rank1", "map"), show_default=True,
    help="Scores to compare; may be given many times, one table each.",
)  # fmt: skip
@click.option(
    "--at", type=click.Choice(["last", "best"]), default="last", show_default=True,
    help="Which evaluation counts: the last one, or the one with the best mean (chosen on the test data: optimistic).",
)  # fmt: skip
def main(
    runs: tuple[common.Named, ...],
    out: Path | None,
    formats: tuple[str, ...],
    baseline: str | None,
    metrics: tuple[str, ...],
    at: str,
) -> None:
    """Compare RUNs (run folders or files) client by client.

    Runs that differ in their seed alone, and runs given the same LABEL=, make one line: mean and sample standard
    deviation over seeds. Differences to the baseline are taken seed by seed where both have the same seeds. Writes
    compare.md, compare.tex, compare.csv and a figure of accuracy against bytes, and prints the tables.
    """
    groups, clients = common.grouped(runs), common.same_clients(runs)
    if baseline is not None and baseline not in groups:
        raise click.BadParameter(
            f"no run is called {baseline!r}; there are {', '.join(groups)}", param_hint="--baseline"
        )
    lines = [line_of(label, members, clients, metrics, at) for label, members in groups.items()]
    base = next((line for line in lines if line.label == baseline), None)
    _mention_unequal_rounds(runs)
    folder = common.folder_for(out, runs[0].run)
    made = [table_of(lines, base, metric, clients, at) for metric in metrics]
    click.echo("\n\n".join(tables.text(table) for table in made))
    for kind, render in (("md", tables.markdown), ("tex", tables.latex)):
        if kind in formats:
            tables.write(folder / f"compare.{kind}", [render(table) for table in made])
    style.save(scatter(lines, base, metrics), folder, "compare", formats)
    if "csv" in formats:
        write_csv(folder / "compare.csv", lines, base, clients)


def _mention_unequal_rounds(runs: Sequence[common.Named]) -> None:
    """Say when runs of different length, or unfinished ones, stand beside one another: their costs are not alike."""
    lengths = sorted({named.run.rounds for named in runs})
    if len(lengths) > 1:
        click.echo(
            f"note: the runs have {', '.join(map(str, lengths))} rounds; their bytes are of unequal work", err=True
        )
    for named in runs:
        if named.run.status != "finished":
            click.echo(f"note: {named.run.path} is {named.run.status}, not finished", err=True)


def line_of(
    label: str, members: Sequence[common.Named], clients: Sequence[str], metrics: Sequence[str], at: str
) -> Line:
    """Return the line of one label, its columns in the order of ``clients``."""
    runs = [named.run for named in members]
    scores = {m: np.array([_scores(run, m, at)[_places(run, clients)] for run in runs]) for m in metrics}
    return Line(
        label,
        tuple(common.seed_of(run) for run in runs),
        scores,
        np.array([float(quantities.sent(run).sum()) for run in runs]),
        np.array([float(run["clients/density"][-1].mean()) for run in runs]),
    )


def _places(run: Run, clients: Sequence[str]) -> list[int]:
    """Return where the clients of the table are in a run, which may list them in another order."""
    return [run.clients.index(name) for name in clients]


def _scores(run: Run, metric: str, at: str) -> Floats:
    """Return a run's scores that count, float64[clients]; NaN where a run was never evaluated."""
    measured = quantities.scores(run, metric)
    measured = measured[~np.isnan(measured).all(axis=1)]
    if not len(measured):
        return np.full(len(run.clients), np.nan)
    row = -1 if at == "last" else int(np.argmax(quantities.row_means(measured)))
    return np.asarray(measured[row])


def against(mine: Line, base: Line, of: Mapping[str, Floats], *, ratio: bool = False) -> Floats:
    """Return mine - base, or mine / base - 1, of one number per seed, ``of`` (by label).

    Seed by seed where both lines have the same seeds, once each; of the means, one number, where they have not.
    """
    ours, theirs = of[mine.label], of[base.label]
    if sorted(mine.seeds) == sorted(base.seeds) and len(set(mine.seeds)) == len(mine.seeds):
        theirs = theirs[[base.seeds.index(seed) for seed in mine.seeds]]
    else:
        ours, theirs = ours.mean(keepdims=True), theirs.mean(keepdims=True)
    return ours / theirs - 1 if ratio else ours - theirs


def _per_byte(score: Floats, sent: Floats) -> Floats:
    """Return score / sent of every seed; NaN where nothing was sent."""
    return np.divide(score, sent, out=np.full_like(score, np.nan), where=sent > 0)


def table_of(lines: Sequence[Line], base: Line | None, metric: str, clients: Sequence[str], at: str) -> Table:
    """Return the table of one metric: clients, mean, bytes, density, and differences to the baseline, if any."""
    shown = clients if len(clients) <= WIDEST else ()
    divisor, unit = style.byte_scale(max(float(line.bytes.max()) for line in lines))
    head = ["run", "seeds", *shown, "mean", f"sent ({unit})", f"mean per {unit}", "density"]
    head += [f"mean vs {base.label} (points)", f"sent vs {base.label} (%)"] if base else []
    means = {line.label: quantities.row_means(line.scores[metric]) for line in lines}
    costs = {line.label: line.bytes for line in lines}
    rows = []
    for line in lines:
        percents = 100 * line.scores[metric]
        row = [line.label, str(len(line.seeds)), *(spread(percents[:, k]) for k in range(len(shown)))]
        row += [spread(100 * means[line.label]), spread(line.bytes / divisor, 2)]
        row += [spread(_per_byte(100 * means[line.label], line.bytes / divisor), 2), spread(line.density, 3)]
        if base is not None:
            points, share = against(line, base, means), against(line, base, costs, ratio=True)
            row += ["", ""] if line is base else [spread(100 * points, signed=True), spread(100 * share, signed=True)]
        rows.append(row)
    which = "last evaluation" if at == "last" else "best evaluation, chosen on the test data"
    title = f"{METRICS[metric]} (%), {which}; mean ± sample standard deviation over seeds"
    title += "" if shown else f"; {len(clients)} clients, each of them in compare.csv"
    return Table(title, head, rows, best=tuple(range(2, 3 + len(shown))))


def scatter(lines: Sequence[Line], base: Line | None, metrics: Sequence[str]) -> Figure:
    """Draw mean accuracy against bytes: one marker a line, bars one standard deviation over seeds, dots the seeds."""
    made, axes = style.figure(1, len(metrics), figsize=(4.4 * len(metrics) + 1.6, 3.8))
    divisor, unit = style.byte_scale(max(float(line.bytes.max()) for line in lines))
    for axis, metric in zip(axes[0], metrics, strict=True):
        for line, look in zip(lines, style.line_styles(), strict=False):
            x, y = line.bytes / divisor, 100 * quantities.row_means(line.scores[metric])
            several = len(x) > 1
            bars = {"xerr": x.std(ddof=1), "yerr": y.std(ddof=1)} if several else {}
            look["linestyle"] = "none"
            axis.plot([], [], ms=7, label=line.label, **look)  # the legend's entry, without bars
            axis.errorbar(x.mean(), y.mean(), **bars, capsize=3, ms=8, **look)
            axis.scatter(x, y, s=10, color=look["color"], alpha=0.55 * several, lw=0)
            if line is base:
                axis.axhline(y.mean(), color=style.DENSE, ls=":", lw=1, zorder=0)
                axis.axvline(x.mean(), color=style.DENSE, ls=":", lw=1, zorder=0)
        axis.set(xlabel=f"sent in the whole run ({unit})", ylabel=f"mean {METRICS[metric]} (%)", title=METRICS[metric])
        axis.margins(0.12)
        axis.set_xlim(left=0)
    style.outside_legend(axes[0, -1])
    return made


def write_csv(path: Path, lines: Sequence[Line], base: Line | None, clients: Sequence[str]) -> None:
    """Write every number of the tables, one a row; scores in [0, 1]."""
    rows: list[list[object]] = []
    for line in lines:
        for metric, values in line.scores.items():
            parts = {name: {x.label: x.scores[metric][:, k] for x in lines} for k, name in enumerate(clients)}
            parts["mean"] = {x.label: quantities.row_means(x.scores[metric]) for x in lines}
            rows += [_row(line, base, metric, name, numbers) for name, numbers in parts.items() if values.size]
        rows.append(_row(line, base, "bytes", "all", {x.label: x.bytes for x in lines}))
        rows.append(_row(line, base, "density", "mean", {x.label: x.density for x in lines}))
    head = ["run", "seeds", "quantity", "client", "mean", "std", "baseline", "difference", "difference_std"]
    common.write_csv(path, head, rows)


def _row(line: Line, base: Line | None, quantity: str, client: str, numbers: Mapping[str, Floats]) -> list[object]:
    mine = numbers[line.label]
    row: list[object] = [line.label, len(line.seeds), quantity, client, mine.mean(), deviation(mine)]
    if base is None:
        return [*row, "", "", ""]
    apart = against(line, base, numbers)
    return [*row, base.label, apart.mean(), deviation(apart)]


if __name__ == "__main__":
    main()
