"""Where the bytes of a run went: per round, client, section and layer; against dense, and as the field counts them."""

from collections.abc import Sequence
from pathlib import Path

import _common as common
import _quantities as quantities
import _style as style
import click
import numpy as np
from _quantities import SECTIONS, WAYS
from matplotlib.figure import Figure

from fedmpi.record import Run


@common.script()
@common.run_argument
@common.out_option
@common.format_option()
@click.option("--client", "client", metavar="NAME", help="Show the layers of one client; default: mean over clients.")
def main(run: common.Named, out: Path | None, formats: tuple[str, ...], client: str | None) -> None:
    """Show the traffic of RUN, a run folder or run file, also of a run that is going on.

    Writes figures (traffic_rounds, traffic_clients, traffic_cumulative, traffic_definitions, traffic_layers) and tables
    as CSV, and prints the totals. 1 MB is 1e6 bytes.
    """
    record, folder = run.run, common.folder_for(out, run.run)
    chosen = _chosen(record, client)
    click.echo(summary(record))
    drawn = {"rounds": by_round, "clients": by_client, "cumulative": cumulative, "definitions": by_definition}
    for name, draw in drawn.items():
        style.save(draw(record), folder, f"traffic_{name}", formats)
    if record.layers:
        style.save(by_layer(record, chosen), folder, "traffic_layers", formats)
    if "csv" in formats:
        write_tables(record, folder)


def _chosen(run: Run, client: str | None) -> int | None:
    """Return the index of the client whose layers are shown, None for all."""
    if client is None:
        return None
    if client not in run.clients:
        raise click.BadParameter(f"no client {client!r}; there are {', '.join(run.clients)}", param_hint="--client")
    return run.clients.index(client)


def summary(run: Run) -> str:
    """Return the totals of a run, way by way and section by section, and by the field's definitions, as text."""
    lines = []
    for way, word in WAYS.items():
        parts = {name: int(values.sum()) for name, values in quantities.section_bytes(run, way).items()}
        total, plain = sum(parts.values()), int(quantities.dense(run, way).sum())
        lines.append([word, *(common.size(parts[name]) for name in SECTIONS), common.size(total), common.size(plain)])
    table = common.aligned(["", *SECTIONS, "sent", "dense"], lines)
    aside = [f"{run[f'rounds/bytes_{name}'].sum():,} bytes of {name}" for name in ("evaluation", "control")]
    ways = [[d.name, common.size(d.bytes), d.formula] for d in quantities.definitions(run)]
    counted = "\n".join(f"  {name:<14}{count:>10}  {formula}" for name, count, formula in ways)
    kept = common.percent(quantities.saved(run))
    return f"{table}\n{kept} % saved against dense; not counted: {', '.join(aside)}\nas the field counts:\n{counted}"


def by_round(run: Run) -> Figure:
    """Draw the bytes of every round, stacked by section, each way apart, with the dense equivalent."""
    made, axes = style.figure(2, 1, figsize=(7.6, 5.2), sharex=True, sharey=True)
    largest = max(float(quantities.dense(run, way).sum(axis=1).max()) for way in WAYS)
    divisor, unit = style.byte_scale(largest)
    rounds = np.arange(run.rounds)
    for axis, (way, word) in zip(axes[:, 0], WAYS.items(), strict=True):
        plain, edges = quantities.dense(run, way).sum(axis=1), np.arange(run.rounds + 1) - 0.5
        heights = np.append(plain, plain[-1]) / divisor
        label = f"dense: {common.size(plain.sum())}"
        axis.step(edges, heights, where="post", color=style.DENSE, ls="--", lw=1, label=label)
        parts = quantities.section_bytes(run, way)
        named = {f"{name}: {common.size(v.sum())}": v.sum(axis=1) / divisor for name, v in parts.items()}
        style.stack(axis, rounds, named, style.COLOURS)
        axis.set(title=f"{word}, all clients", ylabel=f"sent per round ({unit})", ylim=(0, 1.06 * largest / divisor))
        style.outside_legend(axis, title="whole run")
    style.rounds_axis(axes[1, 0])
    return made


def by_client(run: Run) -> Figure:
    """Draw what every client sent and received in the whole run, and its bytes round by round as a heat map."""
    height = min(9.0, 2.4 + 0.24 * len(run.clients))
    made, axes = style.figure(1, 2, figsize=(9.6, height), width_ratios=[1, 1.25])
    totals, plain = {way: quantities.sent(run, way).sum(axis=0) for way in WAYS}, quantities.dense(run).sum(axis=0)
    divisor, unit = style.byte_scale(float(plain.max()))
    rows, base = np.arange(len(run.clients)), np.zeros(len(run.clients))
    for (way, word), colour in zip(WAYS.items(), style.COLOURS, strict=False):
        axes[0, 0].barh(rows, totals[way] / divisor, 0.75, left=base, color=colour, label=word)
        base += totals[way] / divisor
    axes[0, 0].scatter(plain / divisor, rows, marker="|", s=90, color=style.DENSE, label="dense", zorder=3)
    axes[0, 0].set(xlabel=f"whole run ({unit})", ylim=(len(rows) - 0.5, -0.5), xlim=(0, None), title="sent per client")
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3)
    style.name_rows(axes[0, 0], run.clients)
    share = quantities.sent(run) / np.where(quantities.dense(run) > 0, quantities.dense(run), np.nan)
    image = style.heat_map(axes[0, 1], share.T, vmin=0, vmax=max(1.0, float(np.nanmax(share, initial=1.0))))
    made.colorbar(image, ax=axes[0, 1], label="bytes sent / dense (1)")
    axes[0, 1].set_title("share of the dense bytes, up and down")
    style.rounds_axis(axes[0, 1])
    style.name_rows(axes[0, 1], run.clients)
    return made


def cumulative(run: Run) -> Figure:
    """Draw the bytes sent so far, up, down and both, below what dense models would have needed."""
    made, axes = style.figure()
    axis, finished = axes[0, 0], np.arange(run.rounds + 1)

    def so_far(values: quantities.Counts) -> quantities.Counts:
        return np.concatenate([[0], np.cumsum(values.sum(axis=1))])

    plain, both = so_far(quantities.dense(run)), so_far(quantities.sent(run))
    divisor, unit = style.byte_scale(float(plain[-1]))
    axis.plot(finished, plain / divisor, color=style.DENSE, ls="--", label="dense equivalent")
    axis.plot(finished, both / divisor, color=style.COLOURS[0], label="sent, up and down")
    for (way, word), colour, dash in zip(WAYS.items(), style.COLOURS[1:], ("-.", ":"), strict=False):
        axis.plot(finished, so_far(quantities.sent(run, way)) / divisor, color=colour, ls=dash, label=f"sent, {word}")
    axis.fill_between(finished, both / divisor, plain / divisor, color=style.GREY, alpha=0.15, lw=0)
    axis.set_title(f"{common.percent(quantities.saved(run))} % saved against dense")
    axis.set(ylabel=f"sent so far, all clients ({unit})", xlim=(0, run.rounds), ylim=(0, None))
    axis.legend(loc="upper left")
    style.rounds_axis(axis, "rounds finished")
    return made


def by_definition(run: Run) -> Figure:
    """Draw the bytes of the run as the field's definitions count them, beside fedmpi's own."""
    made, axes = style.figure(figsize=(8.2, 3.0))
    axis, ways = axes[0, 0], quantities.definitions(run)
    divisor, unit = style.byte_scale(max(d.bytes for d in ways))
    colours = [style.GREY] * (len(ways) - 1) + [style.COLOURS[0]]
    names = [f"{d.name}\n{d.formula}" for d in ways]
    bars = axis.barh(names, [d.bytes / divisor for d in ways], 0.7, color=colours)
    axis.bar_label(bars, [f"{d.bytes / divisor:.2f}" for d in ways], padding=3)
    axis.invert_yaxis()
    axis.set(xlabel=f"communication of the whole run, all clients ({unit})")
    axis.margins(x=0.1)
    axis.grid(visible=False, axis="y")
    return made


def by_layer(run: Run, client: int | None = None) -> Figure:
    """Draw the kept share of every layer that was ever pruned over rounds, and what its values cost in the last round.

    ``client`` is one client's index; None takes the mean over clients.
    """
    density, cost = run["layers/density"].astype(np.float64), run["layers/bytes_values"]
    density = density.mean(axis=1) if client is None else density[:, client]
    cost = cost[-1].mean(axis=0) if client is None else cost[-1, client]
    shown = [i for i in range(len(run.layers)) if (density[:, i] < 1).any()] or list(range(len(run.layers)))
    names = short_names([run.layers[i] for i in shown])
    made, axes = style.figure(1, 2, figsize=(9.0, min(11.0, 2.2 + 0.17 * len(shown))), width_ratios=[2.2, 1])
    image = style.heat_map(axes[0, 0], density[:, shown].T, vmin=0, vmax=1)
    whose = "mean over clients" if client is None else run.clients[client]
    axes[0, 0].set_title(f"density by layer, {whose}")
    style.name_rows(axes[0, 0], names, 60)
    axes[0, 0].tick_params(axis="y", labelsize=7)
    style.rounds_axis(axes[0, 0])
    divisor, unit = style.byte_scale(float(cost.max()))
    axes[0, 1].barh(range(len(shown)), cost[shown] / divisor, 0.8, color=style.COLOURS[0])
    axes[0, 1].set(xlabel=f"uplink values ({unit})", ylim=(len(shown) - 0.5, -0.5), title="last round")
    axes[0, 1].set_yticks([])
    made.colorbar(image, ax=axes[0, 1], label="parameters kept (1)")
    return made


def short_names(layers: Sequence[str]) -> list[str]:
    """Return names of layers without what all of them begin with, and without the word weight at their end."""
    parts = [name.removesuffix(".weight").split(".") for name in layers]
    while len({part[0] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[1:] for part in parts]
    return [".".join(part) for part in parts]


def write_tables(run: Run, folder: Path) -> None:
    """Write the CSV files: per round and client, per layer, and the definitions."""
    parts = {f"{way}_{name}": values for way in WAYS for name, values in quantities.section_bytes(run, way).items()}
    parts |= {f"{way}_total": quantities.sent(run, way) for way in WAYS}
    parts |= {f"{way}_dense": quantities.dense(run, way) for way in WAYS}
    parts |= {"evaluation": run["clients/bytes_evaluation"], "density": run["clients/density"]}
    head = ["round", "client", *(name if name == "density" else f"{name}_bytes" for name in parts)]
    cells = [(t, k) for t in range(run.rounds) for k in range(len(run.clients))]
    rows = ([t, run.clients[k], *(values[t, k] for values in parts.values())] for t, k in cells)
    common.write_csv(folder / "traffic.csv", head, rows)
    ways = quantities.definitions(run)
    common.write_csv(
        folder / "traffic_definitions.csv",
        ["definition", "formula", "bytes", "ratio_to_fedreid"],
        [[d.name, d.formula, round(d.bytes), d.bytes / ways[0].bytes if ways[0].bytes else float("nan")] for d in ways],
    )
    if run.layers:
        density, cost = run["layers/density"].mean(axis=1), run["layers/bytes_values"].sum(axis=1)
        common.write_csv(
            folder / "traffic_layers.csv",
            ["round", "layer", "mean_density", "uplink_values_bytes"],
            ([t, name, density[t, i], cost[t, i]] for t in range(run.rounds) for i, name in enumerate(run.layers)),
        )


if __name__ == "__main__":
    main()
