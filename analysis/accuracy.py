"""How well a run retrieves: mAP and rank-k over rounds, and over the bytes sent by then."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import _common as common
import _quantities as quantities
import _style as style
import click
import numpy as np
from _quantities import METRICS, Counts, Floats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmpi.record import Run

Groups = Mapping[str, Sequence[common.Named]]
OVER: Final = ("rounds", "bytes")


@common.script()
@common.runs_argument
@common.out_option
@common.format_option()
@click.option(
    "--metric", "metrics", type=click.Choice(list(METRICS)), multiple=True, default=("map", "rank1"), show_default=True,
    help="Scores to draw; may be given many times.",
)  # fmt: skip
@click.option("--clients", "per_client", is_flag=True, help="Draw every client of a single run, not their mean.")
def main(
    runs: tuple[common.Named, ...],
    out: Path | None,
    formats: tuple[str, ...],
    metrics: tuple[str, ...],
    per_client: bool,  # noqa: FBT001 - click passes options by name
) -> None:
    """Draw the accuracy of one or more RUNs (run folders or files) over rounds and over bytes sent.

    Runs that differ in their seed alone, and runs given the same LABEL=, are drawn as their mean with their range.
    Writes accuracy_rounds, accuracy_bytes and accuracy.csv, and prints the scores before and after.
    """
    groups = common.grouped(runs)
    common.same_clients(runs)
    if per_client and len(runs) > 1:
        raise click.UsageError("--clients draws one run; give a single RUN")
    folder = common.folder_for(out, runs[0].run)
    click.echo(summary(groups, metrics))
    for over in OVER:
        made = clients_over(runs[0].run, metrics, over) if per_client else groups_over(groups, metrics, over)
        style.save(made, folder, f"accuracy_{over}{'_clients' * per_client}", formats)
    if "csv" in formats:
        write_table(groups, folder)


def summary(groups: Groups, metrics: Sequence[str]) -> str:
    """Return the mean scores before and after, and the bytes between, as text; one line per run."""
    head = [
        "run",
        "seed",
        "rounds",
        "sent",
        *(f"{METRICS[m]} untrained" for m in metrics),
        *(METRICS[m] for m in metrics),
    ]
    rows = []
    for label, members in groups.items():
        for run in (named.run for named in members):
            before = [common.percent(quantities.mean(quantities.untrained(run, m))) for m in metrics]
            after = [common.percent(_last(run, m)) for m in metrics]
            sent = common.size(quantities.sent(run).sum())
            rows.append([label, common.seed_of(run), str(run.rounds), sent, *before, *after])
    return common.aligned(head, rows)


def _last(run: Run, metric: str) -> float:
    """Return the mean over clients of the last evaluation; NaN if only the untrained model was evaluated."""
    rounds, _, values = quantities.curve(run, metric)
    return quantities.mean(values[-1:]) if len(rounds) and rounds[-1] > 0 else float("nan")


def groups_over(groups: Groups, metrics: Sequence[str], over: str) -> Figure:
    """Draw the mean over clients of every metric, one line per group; where it has several runs, mean and range."""
    made, axes = style.figure(1, len(metrics), figsize=(4.6 * len(metrics) + 1.4, 3.8))
    divisor, unit = style.byte_scale(max(quantities.sent(n.run).sum() for m in groups.values() for n in m))
    for axis, metric in zip(axes[0], metrics, strict=True):
        for (label, members), look in zip(groups.items(), style.line_styles(), strict=False):
            x, low, middle, high = spread(members, metric, over)
            marks = evaluations(members, metric) if over == "bytes" else (x, middle)
            x, places = (x / divisor, marks[0] / divisor) if over == "bytes" else (x, x)
            text = f"{label} ({len(members)} seeds)" if len(members) > 1 else label
            axis.plot([], [], label=text, **look)
            axis.plot(x, 100 * middle, **look | {"marker": None})
            every = max(1, len(places) // 12)
            axis.plot(places, 100 * marks[1], markevery=every, clip_on=False, **look | {"linestyle": "none"})
            if len(members) > 1:
                axis.fill_between(x, 100 * low, 100 * high, color=look["color"], alpha=0.18, lw=0)
        _finish(axis, metric, over, unit)
    style.outside_legend(axes[0, -1])
    return made


def spread(members: Sequence[common.Named], metric: str, over: str) -> tuple[Floats, Floats, Floats, Floats]:
    """Return x, lowest, mean and highest mean-over-clients score of the runs of one group.

    Over rounds, x are the evaluations that all runs have. Over bytes, where runs stop at different places, every run is
    interpolated linearly at the same 60 places up to the smallest total, and a single run is left as it was measured.
    """
    curves = [_mean_curve(named.run, metric, over) for named in members]
    if len(curves) == 1:
        x, y = curves[0]
        return x, y, y, y
    if over == "rounds":
        shared = sorted(set.intersection(*(set(x.tolist()) for x, _ in curves)))
        places = np.array(shared, np.float64)
    else:
        places = np.linspace(0.0, min(x[-1] for x, _ in curves), 60)
    table = np.array([np.interp(places, x, y) for x, y in curves])
    return places, table.min(axis=0), table.mean(axis=0), table.max(axis=0)


def evaluations(members: Sequence[common.Named], metric: str) -> tuple[Floats, Floats]:
    """Return mean bytes and mean score of every evaluation that all runs of a group have."""
    curves = [_mean_curve(named.run, metric, "bytes") for named in members]
    shared = min(len(x) for x, _ in curves)
    return np.mean([x[:shared] for x, _ in curves], axis=0), np.mean([y[:shared] for _, y in curves], axis=0)


def _mean_curve(run: Run, metric: str, over: str) -> tuple[Floats, Floats]:
    """Return rounds or bytes, and the mean over clients of a score, at every evaluation of a run."""
    rounds, total, values = quantities.curve(run, metric)
    x: Counts = rounds if over == "rounds" else total
    return x.astype(np.float64), quantities.row_means(values)


def clients_over(run: Run, metrics: Sequence[str], over: str) -> Figure:
    """Draw every client of one run; over bytes, each over those that it sent and received itself."""
    made, axes = style.figure(1, len(metrics), figsize=(4.6 * len(metrics) + 1.8, 3.8))
    own = np.vstack([np.zeros((1, len(run.clients))), np.cumsum(quantities.sent(run), axis=0)])
    divisor, unit = style.byte_scale(float(own.max()))
    for axis, metric in zip(axes[0], metrics, strict=True):
        rounds, _, values = quantities.curve(run, metric)
        if over == "rounds" or len(run.clients) > style.MANY:
            x = rounds if over == "rounds" else own.mean(axis=1)[rounds] / divisor
            style.client_lines(axis, x, 100 * values, run.clients)
        else:
            for k, look in zip(range(len(run.clients)), style.line_styles(), strict=False):
                axis.plot(own[rounds, k] / divisor, 100 * values[:, k], label=run.clients[k], **look)
        _finish(axis, metric, over, unit, "by the client")
    style.outside_legend(axes[0, -1])
    return made


def _finish(axis: Axes, metric: str, over: str, unit: str, whose: str = "by all clients") -> None:
    """Label the axes of one panel."""
    axis.set(ylabel=f"{METRICS[metric]} (%)", title=METRICS[metric])
    if over == "rounds":
        style.rounds_axis(axis, "rounds finished")
    else:
        axis.set_xlabel(f"sent {whose}, up and down ({unit})")
    axis.set_xlim(left=0)


def write_table(groups: Groups, folder: Path) -> None:
    """Write every score of every run, client and evaluation; ``rounds_finished`` is 0 for the untrained model."""
    rows = []
    for label, members in groups.items():
        for run in (named.run for named in members):
            seed = common.seed_of(run)
            values = {m: np.vstack([quantities.untrained(run, m)[None], quantities.scores(run, m)]) for m in METRICS}
            total = np.concatenate([[0], np.cumsum(quantities.sent(run).sum(axis=1))])
            own = np.vstack([np.zeros((1, len(run.clients)), np.int64), np.cumsum(quantities.sent(run), axis=0)])
            for t in range(run.rounds + 1):
                for k, client in enumerate(run.clients):
                    scores = [values[m][t, k] for m in METRICS]
                    if not np.isnan(scores).all():
                        rows.append([label, seed, t, client, total[t], own[t, k], *scores])
    head = ["run", "seed", "rounds_finished", "client", "total_bytes", "client_bytes", *METRICS]
    common.write_csv(folder / "accuracy.csv", head, rows)


if __name__ == "__main__":
    main()
