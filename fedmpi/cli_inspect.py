"""``fedmpi inspect``: what a run file says, on a terminal, also while the run goes on; without torch and MPI."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmpi.wording import number, percent, size, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedmpi.record import Run

SILENCE = 5.0
"""A running run that has been silent for so many times its longest round, and a minute, has probably been killed."""
POLL_SECONDS = 2.0
COLUMNS = {
    "round": 9,
    "loss": 7,
    "KL": 7,
    "mAP": 5,
    "rank-1": 6,
    "density": 7,
    "MB up": 7,
    "MB down": 7,
    "saved": 6,
    "sec": 5,
}
"""Columns of the table of rounds with their widths; behind them stands what was decided."""
COLOURS = {"finished": "green", "stopped": "yellow", "failed": "red", "running": "blue"}


@click.command("inspect")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--last", default=30, show_default=True, metavar="N", help="Show the last N rounds; 0 shows all.")
@click.option("--clients", "per_client", is_flag=True, help="Show the last round of every client.")
@click.option("--follow", is_flag=True, help="Go on showing rounds until the run has ended.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def inspect(run: Path, last: int, per_client: bool, follow: bool, as_json: bool) -> None:  # noqa: FBT001 - click's way
    """Show what RUN (a run folder or run file) has done: state, rounds, traffic, last error.

    Only committed rounds are shown, so this works at any moment of a run, from any machine that sees its file. Scores
    and shares are in percent, bytes in MB (1e6) of all clients; "saved" is against dense models, since the first round.
    """
    if as_json and follow:
        raise click.UsageError("--json and --follow exclude one another")
    from fedmpi.record import open_run  # noqa: PLC0415 - help stays fast

    status = _status(run) if follow else ""
    with open_run(run) as opened:
        if as_json:
            click.echo(json.dumps(facts(opened), indent=2, allow_nan=False))
            return
        first = max(0, opened.rounds - last) if last > 0 else 0
        earlier = [f"    ... {first} earlier rounds (--last 0 shows all)"] if first else []
        show(summary(opened))
        for line in ("", *table_head(opened), *earlier, *table_rows(opened, first)):
            click.echo(line)
        seen = opened.rounds
        if per_client and seen:
            click.echo("\n" + "\n".join(client_table(opened)))
    if follow:
        _follow(run, seen, status)


def _follow(path: Path, seen: int, status: str) -> None:
    """Print rounds as they are committed, then how the run ended; ``status`` was read before ``seen`` rounds were."""
    from fedmpi.record import open_run  # noqa: PLC0415 - help stays fast

    while status == "running":
        time.sleep(POLL_SECONDS)
        status = _status(path)
        with open_run(path) as run:
            for line in table_rows(run, seen):
                click.echo(line)
            seen = run.rounds
            if status != "running":
                show(["", *summary(run)])


def show(lines: Sequence[str]) -> None:
    """Print a summary; its colours only reach a terminal whose user did not set NO_COLOR."""
    click.echo("\n".join(lines), color=False if os.environ.get("NO_COLOR") else None)


def _status(path: Path) -> str:
    """Return the state of a run; who opens it again after this sees all rounds that came before that state."""
    from fedmpi.record import open_run  # noqa: PLC0415 - help stays fast

    with open_run(path) as run:
        return run.status


def planned(run: Run) -> int:
    """Return how many rounds the configuration asks for; 0 if the file does not tell."""
    import yaml  # noqa: PLC0415 - help stays fast

    try:
        config = yaml.safe_load(str(run.provenance.get("config", "")))
        return int(config["federation"]["rounds"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return 0


def summary(run: Run) -> list[str]:
    """Return what ran and how it stands, in a few lines."""
    items, total = run.provenance, planned(run)
    commit = str(items.get("git_commit", ""))[:10] + (", with changes" if items.get("git_dirty") == "yes" else "")
    reason, word = run.error.partition("; continue with: ")[0], run.status
    facts = {
        "state": click.style(word, COLOURS.get(word)) + state(run, total).removeprefix(word),
        "begun": run.created + (f", stopped {run.stopped}" if run.stopped else ""),
        "resumed": ", ".join(f"after round {items.get('after_rounds', '?')}" for items in run.resumes),
        "what": f"{len(run.clients)} clients, {run.rounds}{f' of {total}' if total else ''} rounds, "
        f"seed {items.get('seed', '?')}, config {str(items.get('config_digest', '?'))[:12]}",
        "where": f"{items.get('ranks', '?')} ranks on {', '.join(sorted(set(items.get('hosts', [])))) or '?'}",
        "code": f"fedmpi {items.get('fedmpi_version', '?')}" + (f" ({commit})" if commit else ""),
        "stopped" if word == "stopped" else "error": reason,
        "go on": again(run),
        "sent": sent(run),
    }
    return [str(run.path), *(f"  {name:<8} {text}" for name, text in facts.items() if text)]


def state(run: Run, total: int) -> str:
    """Return whether the run goes on, and if its file says so, whether that can be believed."""
    if run.status != "running":
        return run.status
    silent, seconds = time.time() - run.updated, [float(x) for x in run["rounds/seconds"]]
    text = f"running; last written {span(silent)} ago"
    if seconds and silent > 60 + SILENCE * max(seconds):
        return f"{text}, while rounds took up to {span(max(seconds))}: probably killed"
    if seconds and total > run.rounds:
        text += f"; about {span((total - run.rounds) * sum(seconds) / len(seconds))} to go"
    return text


def again(run: Run) -> str:
    """Return the command that goes on with a run that is neither finished nor under way; empty if none does."""
    folder = run.path.parent
    over = run.status in {"stopped", "failed"} or "killed" in state(run, 0)
    return f"fedmpi train --resume {folder}" if over and (folder / "checkpoints").is_dir() else ""


def sent(run: Run) -> str:
    """Return the bytes of all committed rounds in one line."""
    total = {
        name: int(run[f"rounds/bytes_{name}"].sum()) for name in ("up", "down", "dense_up", "dense_down", "evaluation")
    }
    moved, dense = total["up"] + total["down"], total["dense_up"] + total["dense_down"]
    if not moved:
        return ""
    saved = f" instead of {size(dense)} dense: {percent(1 - moved / dense)} % saved" if dense else ""
    more = f"; {size(total['evaluation'])} more to evaluate" if total["evaluation"] else ""
    return f"{size(moved)} (up {size(total['up'])}, down {size(total['down'])}){saved}{more}"


def table_head(run: Run) -> list[str]:
    """Return the head of the table of rounds, and the untrained model's line."""
    scores = [percent(_mean(run[f"baseline/{name}"])) for name in ("map", "rank1")]
    return [_line([*COLUMNS, "pruning"]), _line(["--", "--", "--", *scores]) + "  untrained model"]


def table_rows(run: Run, first: int) -> list[str]:
    """Return one aligned line per round, from round ``first`` on."""
    names = ("mean_loss", "mean_map", "mean_rank1", "mean_density", "seconds", "bytes_up", "bytes_down")
    rows = {name: run[f"rounds/{name}"] for name in names}
    dense = (run["rounds/bytes_dense_up"] + run["rounds/bytes_dense_down"]).cumsum()
    moved = (rows["bytes_up"] + rows["bytes_down"]).cumsum()
    kl, words, total = run["clients/loss_kl"], events(run), planned(run) or run.rounds
    lines = []
    for t in range(first, run.rounds):
        row = {name: float(values[t]) for name, values in rows.items()}
        saved = 1 - int(moved[t]) / int(dense[t]) if dense[t] else math.nan
        cells = [f"{t + 1}/{total}", number(row["mean_loss"], 2), number(_mean(kl[t]), 3)]
        cells += [percent(row["mean_map"]), percent(row["mean_rank1"]), number(row["mean_density"], 3)]
        cells += [f"{row[f'bytes_{way}'] / 1e6:.1f}" for way in ("up", "down")]
        lines.append(_line([*cells, f"{percent(saved)}%", f"{row['seconds']:.0f}", words[t]]))
    return lines


def _line(cells: Sequence[str]) -> str:
    """Return the cells of a line below their heads, flush right; what has no column follows as it is."""
    widths = [*COLUMNS.values(), *[0] * len(cells)]
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=False)).rstrip()


def events(run: Run) -> list[str]:
    """Return, for every round, how many clients pruned, halted, recovered, and what went wrong in it."""
    from fedmpi.record import CrrDecision  # noqa: PLC0415 - help stays fast

    words = {d.name.lower().replace("_", " "): run["clients/crr_decision"] == int(d) for d in CrrDecision if d}
    words["refused"] = run["clients/skipped"] != 0
    counts = {word: cells.sum(axis=1) for word, cells in words.items()}
    uniform = run["rounds/uniform_weights"]
    return [
        ", ".join([f"{n[t]} {word}" for word, n in counts.items() if n[t]] + ["uniform weights"] * bool(uniform[t]))
        for t in range(run.rounds)
    ]


def client_table(run: Run) -> list[str]:
    """Return one line per client: scores before and now, and the last round's numbers."""
    columns = {
        "client": list(run.clients),
        **_scores(run),
        "density": [number(x, 3) for x in run["clients/density"][-1]],
        "weight": [number(x, 3) for x in run["clients/weight"][-1]],
        "decision": _decisions(run),
        "clusters": [str(n) if n >= 0 else "--" for n in run["clients/clusters"][-1]],
        **_traffic(run),
        "sec": [number(x, 1) for x in _own_seconds(run)],
    }
    rows = [[name.split(":")[-1] for name in columns], *zip(*columns.values(), strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return ["  " + "  ".join(_cells(row, widths)).rstrip() for row in rows]


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]


def _scores(run: Run) -> dict[str, list[str]]:
    """Return the columns of scores; of a name, what stands behind a colon is shown."""
    columns = {}
    for metric, word in (("map", "mAP"), ("rank1", "rank-1")):
        columns[f"{word} untrained"] = [percent(x) for x in run[f"baseline/{metric}"]]
        columns[f"{word}:-> now"] = [percent(_last(values)) for values in run[f"clients/{metric}"].T]
    return columns


def _decisions(run: Run) -> list[str]:
    """Return every client's last decision of CRR."""
    meanings = run.attributes("clients/crr_decision")["flag_meanings"].split()
    return [meanings[code] for code in run["clients/crr_decision"][-1]]


def _traffic(run: Run) -> dict[str, list[str]]:
    """Return the columns of bytes so far, both ways, and of the share saved."""
    names = [n for n in run.names() if n.startswith(("clients/bytes_up_", "clients/bytes_down_"))]
    moved = sum(run[name].sum(axis=0) for name in names)
    dense = sum(run[f"clients/bytes_dense_{way}"].sum(axis=0) for way in ("up", "down"))
    saved = [f"{percent(1 - m / d)} %" if d else "--" for m, d in zip(moved, dense, strict=True)]
    return {"MB so far": [f"{m / 1e6:.1f}" for m in moved], "saved": saved}


def _own_seconds(run: Run) -> list[float]:
    """Return the seconds of every client's own work in the last round; NaN where nothing was measured."""
    names = ("cluster", "train", "probe", "prune", "encode", "evaluate")
    rows = zip(*(run[f"clients/seconds_{name}"][-1].tolist() for name in names), strict=True)
    return [sum(x for x in row if not math.isnan(x)) if not all(map(math.isnan, row)) else math.nan for row in rows]


def facts(run: Run) -> dict[str, Any]:
    """Return all that is shown, as what JSON can hold; scores and shares in [0, 1], bytes whole, times in seconds."""
    variables = [name for name in run.names() if name.startswith("rounds/")]
    return {
        "path": str(run.path),
        "status": run.status,
        "error": run.error,
        "created": run.created,
        "stopped": run.stopped,
        "updated": run.updated,
        "clients": list(run.clients),
        "rounds": run.rounds,
        "rounds_planned": planned(run) or None,
        "provenance": {name: value for name, value in run.provenance.items() if name != "config"},
        "resumes": [{name: value for name, value in items.items() if name != "config"} for items in run.resumes],
        "baseline": {name: plain(run[f"baseline/{name}"].tolist()) for name in ("map", "rank1", "rank5", "rank10")},
        "per_round": {name.split("/")[1]: plain(run[name].tolist()) for name in variables},
        "last_round": _last_round(run),
    }


def _last_round(run: Run) -> dict[str, Any]:
    """Return every variable of the clients in the last round, by client."""
    names = [name for name in run.names() if name.startswith("clients/") and run.dims(name) == ("round", "client")]
    if not run.rounds:
        return {}
    rows = {name.split("/")[1]: plain(run[name][-1].tolist()) for name in names}
    return {client: {name: row[k] for name, row in rows.items()} for k, client in enumerate(run.clients)}


def plain(values: list[Any]) -> list[Any]:
    """Return numbers with NaN as None, which JSON knows as null."""
    return [None if isinstance(x, float) and math.isnan(x) else x for x in values]


def _mean(values: Any) -> float:  # noqa: ANN401 - a NumPy array, whose import would slow --help down
    """Return the mean of what was measured; NaN when nothing was."""
    known = [float(x) for x in values if not math.isnan(x)]
    return sum(known) / len(known) if known else math.nan


def _last(values: Any) -> float:  # noqa: ANN401 - as above
    """Return the last value that was measured; NaN when none was."""
    return next((float(x) for x in values[::-1] if not math.isnan(x)), math.nan)
