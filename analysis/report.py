"""One HTML page that tells a run: what ran, what came of it, what it sent, what was pruned, and where it came from."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Final

import _common as common
import _page as page
import _quantities as quantities
import _sections as sections
import click
import numpy as np

from fedmpi.record import Run

SECTIONS_OF_PAGE: Final = {
    "setup": "What ran",
    "accuracy": "Accuracy",
    "traffic": "Traffic",
    "pruning": "Pruning and recovery",
    "weights": "Aggregation weights",
    "training": "Local training",
    "times": "Where time went",
    "links": "Over other links",
    "provenance": "Provenance",
}


@common.script()
@common.run_argument
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The page; default: report.html beside the run file."
)
def main(run: common.Named, out: Path | None) -> None:
    """Write one self-contained HTML page about RUN, a run folder or run file, also of a run that is going on.

    The page needs no network, script or other file. The same run file gives the same page.
    """
    path = out or run.run.path.parent / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(build(run.run), encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    click.echo(str(path))


def build(run: Run) -> str:
    """Return the page."""
    parts = {
        "setup": sections.setup(run),
        "accuracy": sections.scores(run),
        "traffic": sections.bytes_sent(run),
        "pruning": sections.pruning(run),
        "weights": sections.weights(run),
        "training": sections.training(run),
        "times": sections.times(run),
        "links": sections.other_links(run),
        "provenance": sections.provenance(run),
    }
    links = "".join(f'<a href="#{key}">{SECTIONS_OF_PAGE[key]}</a>' for key, inner in parts.items() if any(inner))
    body = [*top(run), f"<nav>{links}</nav>", page.tiles(headline(run)), page.notes(notes(run))]
    body += [page.section(key, SECTIONS_OF_PAGE[key], inner) for key, inner in parts.items()]
    return page.page(f"{common.name_of(run)}: fedmpi run", body)


def top(run: Run) -> list[str]:
    """Return the title, with the run's state."""
    start = str(run.created).replace("T", " ").replace("+00:00", " UTC")
    version = run.provenance.get("fedmpi_version", "?")
    planned = int(common.setting(common.config_of(run), "federation.rounds", run.rounds))
    rounds = f"{run.rounds} of {planned} rounds" if run.rounds < planned else f"{run.rounds} rounds"
    line = f"{len(run.clients)} clients, {rounds}, seed {common.seed_of(run)}; begun {start}; fedmpi {version}"
    name, status = escape(common.name_of(run)), escape(run.status)
    return [f'<h1>{name} <small class="badge {status}">{status}</small></h1>', page.text(line, "soft")]


def headline(run: Run) -> list[tuple[str, str, str]]:
    """Return the figures that one looks for first."""
    items = []
    for metric in ("map", "rank1"):
        before = quantities.mean(quantities.untrained(run, metric))
        after = quantities.mean(quantities.last_measured(quantities.scores(run, metric)))
        items.append(
            (
                f"{common.percent(after)} %" if np.isfinite(after) else "not yet",
                f"mean {quantities.METRICS[metric]}",
                f"untrained {common.percent(before)} %",
            )
        )
    sent, plain = int(quantities.sent(run).sum()), int(quantities.dense(run).sum())
    kept = quantities.mean(run["clients/density"][-1])
    return [
        *items,
        (
            f"{common.percent(quantities.saved(run))} %",
            "of the bytes saved",
            f"{common.size(sent)} of {common.size(plain)} dense",
        ),
        (f"{common.percent(kept)} %", "of the prunable weights kept", "mean over clients"),
        (
            common.duration(float(run["rounds/seconds"].sum())),
            "in rounds",
            f"{float(run['rounds/seconds'].mean()):.1f} s each",
        ),
    ]


def notes(run: Run) -> list[str]:
    """Return what a reader must know before believing the figures."""
    config, items = common.flat(common.config_of(run)), unfinished(run)
    if config.get("crr.enabled") and config.get("crr.probe") == "test":
        items.append("crr.probe = test: pruning was decided on the test data, whose labels leak into the scores below.")
    if config.get("data.labels"):
        items.append("data.labels = true: training used the true identities, not clusters.")
    if "data.root" in config and config["data.root"] is None:
        items.append("The clients are fedmpi's embedded drawn people: their scores say nothing about photographs.")
    uniform = [str(t) for t in np.flatnonzero(run["rounds/uniform_weights"])]
    if uniform:
        items.append(f"Aggregation fell back to uniform weights in {counted(uniform, 'round')}.")
    skipped = [f"{run.clients[k]} (round {t})" for t, k in np.argwhere(run["clients/skipped"])]
    if skipped:
        items.append(f"The server refused {counted(skipped, 'update')}.")
    bad = {run.clients[k]: int(n) for k, n in enumerate(run["clients/bad_images"][-1]) if n > 0}
    if bad:
        items.append("Unreadable training images: " + ", ".join(f"{n} of {name}" for name, n in bad.items()) + ".")
    if run.provenance.get("git_dirty") == "yes":
        items.append("The source tree had changes that are in no commit.")
    return items


def unfinished(run: Run) -> list[str]:
    """Return why the run has not reached its end, as far as its file tells; nothing if it has."""
    rounds = f"{run.rounds} committed round{'s' * (run.rounds != 1)}"
    if run.status == "failed":
        return [f"The run failed after {rounds}: {run.error or 'no reason is recorded'}"]
    if run.status == "stopped":
        reason = run.error.partition("; continue with: ")[0] or "no reason is recorded"
        return [f"The run was asked to stop after {rounds}: {reason}. fedmpi train --resume goes on with it."]
    if run.status == "running":
        when = datetime.fromtimestamp(float(run["rounds/started"][-1]), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return [f"The run is going on, or was killed: its file was left open. Its last round began {when}."]
    return []


def counted(items: Sequence[str], word: str) -> str:
    """Return ``3 rounds: 1, 4, 5``, at most twelve of them by name."""
    named = ", ".join(items[:12]) + (" ..." if len(items) > 12 else "")
    return f"{len(items)} {word}{'s' * (len(items) != 1)}: {named}"


if __name__ == "__main__":
    main()
