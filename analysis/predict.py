"""What if the same messages had moved over another link: where time would go, and the speed-up against dense."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import _common as common
import _links as links
import _quantities as quantities
import _style as style
import click
import numpy as np
from _links import PRESETS, Link, LinkType
from _quantities import Counts, Floats
from matplotlib.figure import Figure

from fedmpi.record import Run

OWN_WORK: Final = ("seconds_cluster", "seconds_train", "seconds_probe", "seconds_prune", "seconds_encode")
CONTROL_TRIPS: Final = 5
"""Small collectives of a round (flags, measurements), each a way there and back."""
PARTS: Final = {"local": "local work", "down": "downlink", "up": "uplink, merge"}


@dataclass(frozen=True)
class Replay:
    """The messages of a run as collectives: bytes by direction, int64[rounds, clients], and what else a round needs.

    ``merge`` and ``local`` are seconds, float64[rounds]: the server merging, and the slowest client's own work.
    """

    bytes: dict[str, Counts]
    dense: dict[str, Counts]
    segments: int
    merge: Floats
    local: Floats


@dataclass(frozen=True)
class Forecast:
    """Seconds of every round over one link, float64[rounds] by part; ``dense`` the same without pruning."""

    link: Link
    sparse: dict[str, Floats]
    dense: dict[str, Floats]

    def moving(self, parts: dict[str, Floats]) -> float:
        """Return the seconds of the whole run in which bytes move."""
        return float((parts["down"] + parts["up"]).sum())

    def whole(self, parts: dict[str, Floats]) -> float:
        """Return the seconds of the whole run."""
        return float(sum(part.sum() for part in parts.values()))


@common.script()
@common.run_argument
@common.out_option
@common.format_option()
@click.option(
    "--link", "chosen", type=LinkType(), multiple=True, default=list(PRESETS), metavar="LINK",
    help=f"{', '.join(PRESETS)}, or NAME=DOWN/UP/LATENCY/SERVER as in x=100Mbit/20Mbit/5ms/1Gbit. Default: all named.",
)  # fmt: skip
@click.option(
    "--local", "factor", type=click.FloatRange(min=0), default=1.0, show_default=True,
    help="Factor on the measured seconds of local work, for clients of another speed.",
)  # fmt: skip
@click.option(
    "--check", "real", type=LinkType(), metavar="LINK",
    help="The link that the run really had: compare the prediction with the measured transfer times.",
)  # fmt: skip
def main(
    run: common.Named,
    out: Path | None,
    formats: tuple[str, ...],
    chosen: tuple[Link, ...],
    factor: float,
    real: Link | None,
) -> None:
    """Replay the messages of RUN over other links, from InfiniBand to 4G.

    Every client has its own link, all share the server's. Local work is that of the slowest client, as measured;
    evaluation is left out. Writes a figure and predict.csv, and prints seconds per round, how much of it moves bytes,
    and the speed-up against the same messages sent dense. The model: docs/analysis.md.
    """
    record, folder = run.run, common.folder_for(out, run.run)
    replayed = replay(record, factor)
    forecasts = [forecast(replayed, link) for link in chosen]
    click.echo(summary(record, forecasts))
    click.echo(f"\n{measured(record)}" if real is None else f"\n{check(record, replayed, real)}")
    style.save(draw(record, forecasts), folder, "predict", formats)
    if "csv" in formats:
        write_table(folder / "predict.csv", forecasts)


def replay(run: Run, factor: float = 1.0) -> Replay:
    """Return what moved in a run; ``factor`` scales local work."""
    sums = {name: _sums(run, name, "bytes") for name in ("down", "request", "recover", "up", "eval")}
    dense = {way: _sums(run, way, "dense_bytes") for way in ("down", "up")}
    config = common.config_of(run)
    segment = float(common.setting(config, "comm.segment_mb", 1.0) or 1.0) * 2**20
    segments = max(1, int(np.ceil(4 * quantities.parameters(run) / segment)))
    work = np.nansum([run[f"clients/{name}"] for name in OWN_WORK], axis=0)
    return Replay(sums, dense, segments, np.nan_to_num(run["rounds/seconds_merge"]), factor * work.max(axis=1))


def _sums(run: Run, direction: str, column: str) -> Counts:
    """Return a column of the messages of one direction, int64[rounds, clients]."""
    table = run.messages
    rows = table[table["direction"] == direction.encode()]
    sums = np.zeros((run.rounds, len(run.clients)), np.int64)
    np.add.at(sums, (rows["round"], rows["client"]), rows[column])
    return sums


def forecast(replayed: Replay, link: Link, hosts: Sequence[int] | None = None) -> Forecast:
    """Return the seconds of every round over ``link``, and of the same rounds sent dense.

    The uplink lasts as long as the slower of link and merging, which overlap; merging a dense update is taken to cost
    more in proportion to its bytes. Dense rounds have no recovery.
    """
    control = CONTROL_TRIPS * 2 * link.latency
    b, s = replayed.bytes, replayed.segments

    def moved(way: str, sent: Counts, ranges: int = s) -> Floats:
        return links.seconds(link, way, sent, ranges, hosts)

    asked = moved("up", b["request"], 0) + moved("down", b["recover"])
    growth = replayed.dense["up"].sum(axis=1) / np.maximum(b["up"].sum(axis=1), 1)
    sparse = {
        "local": replayed.local,
        "down": moved("down", b["down"]) + asked,
        "up": np.maximum(moved("up", b["up"]), replayed.merge) + control,
    }
    dense = {
        "local": replayed.local,
        "down": moved("down", replayed.dense["down"]),
        "up": np.maximum(moved("up", replayed.dense["up"]), replayed.merge * growth) + control,
    }
    return Forecast(link, sparse, dense)


def summary(run: Run, forecasts: Sequence[Forecast]) -> str:
    """Return the table of all links as text; seconds are means per round."""
    head = ["link", "down", "up", "local", "round", "moving", "dense round", "moving x", "round x"]
    rows = []
    for f in forecasts:
        whole, moving = f.whole(f.sparse), f.moving(f.sparse)
        per_round = [*(float(f.sparse[part].mean()) for part in ("down", "up", "local")), whole / run.rounds]
        rows.append(
            [
                f.link.name,
                *(f"{number:.3g} s" for number in per_round),
                f"{common.percent(moving / whole if whole else 0.0)} %",
                f"{f.whole(f.dense) / run.rounds:.3g} s",
                *(f"{x:.2f}" for x in speed_ups(f)),
            ]
        )
    notes = "\n".join(f"  {f.link}" for f in forecasts)
    return f"{common.aligned(head, rows)}\nlinks (payload):\n{notes}"


def speed_ups(f: Forecast) -> tuple[float, float]:
    """Return dense / sparse seconds, of what moves bytes alone and of whole rounds; NaN where nothing takes time."""
    moving, whole = f.moving(f.sparse), f.whole(f.sparse)
    nan = float("nan")
    return f.moving(f.dense) / moving if moving else nan, f.whole(f.dense) / whole if whole else nan


def transfers(run: Run) -> dict[str, tuple[float, Floats]]:
    """Return what was measured of each collective: bytes that left or reached the server, and seconds, float64[rounds].

    All messages of a collective carry its time. That of the uplink is the round's, without the waiting for its messages
    to begin, in which the clients still code them. Clients that the server hosts itself move nothing.
    """
    table, hosts = run.messages, hosts_of(run)
    away = np.isin(table["client"], [k for k, host in enumerate(hosts) if host != 0])
    result = {}
    for name in ("down", "up", "eval"):
        rows = table[away & (table["direction"] == name.encode())]
        taken = np.zeros(run.rounds)
        np.maximum.at(taken, rows["round"], rows["seconds"])
        result[name] = float(rows["bytes"].sum()), _uplink(run) if name == "up" else taken
    return result


def _uplink(run: Run) -> Floats:
    """Return the seconds of the uplink without the wait for its messages to begin, which older files do not tell."""
    waited = "rounds/seconds_wait"
    return run["rounds/seconds_uplink"] - (np.nan_to_num(run[waited]) if waited in run else 0.0)


def hosts_of(run: Run) -> list[int]:
    """Return the rank of every client; a rank each where the file does not tell."""
    ranks = run.provenance.get("client_ranks")
    return [int(rank) for rank in ranks] if ranks else [k + 1 for k in range(len(run.clients))]


def measured(run: Run) -> str:
    """Return the bandwidth that the run had in effect, by collective, as text."""
    lines = []
    for name, (moved, taken) in transfers(run).items():
        total = float(np.nansum(taken))
        if moved and total:
            lines.append(f"{name} {links.rate(8 * moved / total)} ({common.size(moved)} in {total:.3g} s)")
    return "measured in the run, merging included: " + (", ".join(lines) or "no transfer between ranks")


def check(run: Run, replayed: Replay, link: Link) -> str:
    """Return prediction and measurement side by side, per collective and in all, as text."""
    hosts, rows, sums = hosts_of(run), [], np.zeros(2)
    merging = {"up": replayed.merge}
    for name, (moved, taken) in transfers(run).items():
        way = "up" if name == "up" else "down"
        predicted = links.seconds(link, way, replayed.bytes[name], replayed.segments, hosts)
        predicted = np.maximum(predicted, merging.get(name, 0.0))
        if not moved or np.isnan(taken).all():
            continue
        pair = np.array([float(predicted.sum()), float(np.nansum(taken))])
        sums += pair
        rows.append(
            [name, common.size(moved), *(f"{x:.3g} s" for x in pair), f"{100 * (pair[0] / pair[1] - 1):+.1f} %"]
        )
    if not rows:
        return f"nothing to check: no message moved between ranks in {run.path}"
    rows.append(["all", "", *(f"{x:.3g} s" for x in sums), f"{100 * (sums[0] / sums[1] - 1):+.1f} %"])
    table = common.aligned(["", "bytes", "predicted", "measured", "prediction off by"], rows)
    return f"against this run's own transfers, over {link}:\n{table}"


def draw(run: Run, forecasts: Sequence[Forecast]) -> Figure:
    """Draw, for every link, where the time of a round goes, sparse above dense, and the two speed-ups."""
    made, axes = style.figure(1, 2, figsize=(10.0, 1.6 + 0.62 * len(forecasts)), width_ratios=[2.2, 1])
    left, right = axes[0]
    rows = np.arange(len(forecasts))
    for shift, sent in ((-0.2, "sparse"), (0.2, "dense")):
        base = np.zeros(len(forecasts))
        for (part, word), colour in zip(PARTS.items(), (style.GREY, *style.COLOURS[:2]), strict=True):
            share = np.array([getattr(f, sent)[part].sum() / max(f.whole(f.dense), 1e-300) for f in forecasts])
            look = {} if sent == "sparse" else {"hatch": "////", "alpha": 0.45}
            left.barh(rows + shift, share, 0.36, left=base, color=colour, lw=0, label=f"{word}, {sent}", **look)
            base += share
        for row, f, end in zip(rows, forecasts, base, strict=True):
            text = f" {f.whole(getattr(f, sent)) / run.rounds:.3g} s"
            left.annotate(text, (end, row + shift), va="center", fontsize=8)
    left.set(xlabel="time of a round / time of the dense round (1)", title="where time goes", xlim=(0, 1.15))
    left.set_yticks(rows, [f.link.name for f in forecasts])
    ratios = np.array([speed_ups(f) for f in forecasts])
    for column, (word, mark) in enumerate((("moving bytes", "o"), ("whole round", "D"))):
        right.plot(ratios[:, column], rows, mark, color=style.COLOURS[2 + column], label=word)
    right.axvline(1, color=style.DENSE, ls="--", lw=1)
    right.set(xlabel="dense time / sparse time (1)", title="speed-up against dense", yticks=rows, yticklabels=[])
    for axis in axes[0]:
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(visible=False, axis="y")
    handles, labels = left.get_legend_handles_labels()
    more, words = right.get_legend_handles_labels()
    made.legend([*handles, *more], [*labels, *words], loc="outside lower center", ncols=4)
    return made


def write_table(path: Path, forecasts: Sequence[Forecast]) -> None:
    """Write the seconds of every link, round and part, sparse and dense."""
    head = ["link", "round", *(f"{part}_s" for part in PARTS), *(f"{part}_dense_s" for part in PARTS)]
    rows = (
        [f.link.name, t, *(f.sparse[part][t] for part in PARTS), *(f.dense[part][t] for part in PARTS)]
        for f in forecasts
        for t in range(len(f.sparse["local"]))
    )
    common.write_csv(path, head, rows)


if __name__ == "__main__":
    main()
