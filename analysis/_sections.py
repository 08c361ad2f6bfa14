"""The sections of a run's page: each function returns its pieces of HTML, in order; nothing where there is nothing."""

from typing import Any, Final

import _common as common
import _page as page
import _quantities as quantities
import _run_figures as figures
import accuracy
import numpy as np
import predict
import traffic
from _links import PRESETS
from _quantities import DECISIONS, SECTIONS, WAYS

from fedmpi.record import Run

SWITCHES: Final = ("kll", "klaw", "praw", "sas", "pruning", "crr")
DETAILS: Final = 500
"""Rows up to which the decisions are listed one by one."""
MANY: Final = 40
"""More clients than this are listed only on a click."""


def setup(run: Run) -> list[str]:
    """Return what ran, in a few lines; the whole configuration is under provenance."""
    config = common.flat(common.config_of(run))

    def of(*keys: str) -> str:
        return ", ".join(f"{key.split('.', 1)[1]} {config[key]}" for key in keys if key in config)

    on = [name.upper() if name != "pruning" else name for name in SWITCHES if config.get(f"{name}.enabled")]
    off = [name.upper() if name != "pruning" else name for name in SWITCHES if config.get(f"{name}.enabled") is False]
    data = config.get("data.root") or "embedded synthetic people"
    rows = [
        (
            "method",
            f"{config.get('federation.method', 'fedklpr')}: {', '.join(on)}"
            + (f"; off: {', '.join(off)}" if off else ""),
        ),
        ("model", f"{config.get('model.arch', '?')}, {quantities.parameters(run):,} parameters"),
        ("data", f"{data}, {config.get('data.height', '?')}x{config.get('data.width', '?')} pixels"),
        (
            "schedule",
            of("federation.rounds", "local.epochs", "local.last_round_epochs", "local.batch_size", "local.lr"),
        ),
        ("pruning", of("pruning.step", "pruning.target", "pruning.scope", "pruning.start_round")),
        ("recovery", of("crr.probe", "crr.tau1", "crr.tau2")),
        ("weights", of("klaw.sign", "praw.rule", "klpwa.mix", "klpwa.alpha")),
        (
            "ranks",
            f"{run.provenance.get('ranks', '?')} on {', '.join(sorted(set(run.provenance.get('hosts', []))) or '?')}",
        ),
    ]
    return [page.facts([row for row in rows if row[1]])]


def scores(run: Run) -> list[str]:
    """Return accuracy: figures over rounds and bytes, and the table of clients."""
    known = [m for m in ("map", "rank1") if figures.measured(quantities.scores(run, m))]
    if not known:
        return [page.text("No round was evaluated.")]
    listed = client_table(run)
    parts = [page.folded("Each client", listed) if len(run.clients) > MANY else listed]
    for over, words in (("rounds", "rounds finished"), ("bytes", "bytes that the client sent and received by then")):
        made = accuracy.clients_over(run, known, over)
        parts.append(
            page.picture(made, f"mAP and rank-1 of every client over {words}", f"Personalized models, over {words}.")
        )
    whole = [m for m in ("global_map", "global_rank1") if figures.measured(quantities.scores(run, m))]
    if whole:
        made = accuracy.clients_over(run, whole, "rounds")
        parts.append(
            page.folded("The global model", page.picture(made, "mAP and rank-1 of the global model over rounds"))
        )
    return parts


def client_table(run: Run) -> str:
    """Return one line per client: scores before, after and at best, density, bytes."""
    head = ["client", "train images"]
    head += [f"{name} {word}" for name in ("mAP", "rank-1") for word in ("untrained", "final", "best (round)")]
    head += ["density", "sent", "dense", "saved"]
    values = {m: quantities.scores(run, m) for m in ("map", "rank1")}
    before = {m: quantities.untrained(run, m) for m in values}
    after = {m: quantities.last_measured(v) for m, v in values.items()}
    sent, plain = quantities.sent(run).sum(axis=0), quantities.dense(run).sum(axis=0)
    images, kept = run["clients/train_images"][-1], run["clients/density"][-1]
    rows = []
    for k, name in enumerate(run.clients):
        cells = [name, str(images[k]) if images[k] >= 0 else "--"]
        for m in values:
            cells += [common.percent(before[m][k]), common.percent(after[m][k]), best(values[m][:, k])]
        rows.append([*cells, f"{kept[k]:.3f}", *cost(sent[k], plain[k])])
    means = [[common.percent(quantities.mean(x[m])) for x in (before, after)] + [""] for m in values]
    total = ["mean, total", "", *means[0], *means[1], f"{quantities.mean(kept):.3f}", *cost(sent.sum(), plain.sum())]
    return page.table(head, [*rows, total], total=True)


def best(column: quantities.Floats) -> str:
    """Return the best score of a client and its round."""
    if np.isnan(column).all():
        return "--"
    t = int(np.nanargmax(column))
    return f"{common.percent(float(column[t]))} ({t})"


def cost(sent: float, plain: float) -> list[str]:
    """Return the cells of bytes sent, dense, and the share saved."""
    return [common.size(sent), common.size(plain), f"{common.percent(1 - sent / plain if plain else float('nan'))} %"]


def bytes_sent(run: Run) -> list[str]:
    """Return traffic: sections, definitions, figures, layers."""
    rows = []
    for way, word in WAYS.items():
        by_section = {name: int(values.sum()) for name, values in quantities.section_bytes(run, way).items()}
        total, plain = sum(by_section.values()), int(quantities.dense(run, way).sum())
        rows.append([word, *(common.size(by_section[name]) for name in SECTIONS), *cost(total, plain)])
    ways = quantities.definitions(run)
    counted_as = [
        [d.name, common.size(d.bytes), f"{d.bytes / ways[0].bytes:.3f}", d.formula] for d in ways if ways[0].bytes
    ]
    aside = ", ".join(f"{common.size(float(run[f'rounds/bytes_{n}'].sum()))} of {n}" for n in ("evaluation", "control"))
    parts = [
        page.table(["", *SECTIONS, "sent", "dense", "saved"], rows),
        page.text(f"Bytes handed to MPI, 1 MB = 1e6 bytes. Moved beside the method, and not counted: {aside}.", "soft"),
        page.picture(traffic.by_round(run), "bytes of every round by section, up and down, below the dense equivalent"),
        page.picture(traffic.cumulative(run), "bytes sent so far against dense"),
        page.picture(traffic.by_client(run), "bytes of every client, and their share of dense by round"),
        page.heading("As the field counts"),
        page.table(["definition", "bytes", "of FedReID's", "how"], counted_as, words=True),
        mask_modes(run),
    ]
    if run.layers:
        parts.append(
            page.picture(traffic.by_layer(run), "density of every layer over rounds", "Layers that were pruned.")
        )
    return parts


def mask_modes(run: Run) -> str:
    """Return how masks travelled: messages and mask bytes by mode."""
    table, rows = run.messages, []
    up = table[table["direction"] == b"up"]
    for mode in sorted(set(up["mask_mode"].tolist())):
        chosen = up[up["mask_mode"] == mode]
        rows.append([mode.decode(), f"{len(chosen)}", common.size(float(chosen["mask"].sum()))])
    return page.heading("Masks of the updates") + page.table(["mode", "updates", "mask bytes"], rows)


def pruning(run: Run) -> list[str]:
    """Return pruning: density, decisions, and the probes behind them."""
    codes = run["clients/crr_decision"]
    present = [code for code in DECISIONS if (codes == code).any()]
    parts = [page.picture(figures.density(run), "density of every client over rounds")]
    if present == [0]:
        return [*parts, page.text("Cross-round recovery was off.")]
    counts = [
        [name, *(str(int((codes[:, k] == code).sum())) for code in present)] for k, name in enumerate(run.clients)
    ]
    total = ["all", *(str(int((codes == code).sum())) for code in present)]
    listed = page.table(["client", *(DECISIONS[code] for code in present)], [*counts, total], total=True)
    probe = common.setting(common.config_of(run), "crr.probe", "?")
    return [
        *parts,
        page.picture(figures.decisions(run), "decision of cross-round recovery of every client and round"),
        page.folded("Decisions of each client", listed) if len(run.clients) > MANY else listed,
        page.folded(f"Every decision, with what the probe ({probe}) measured", decision_list(run)),
    ]


def decision_list(run: Run) -> str:
    """Return one line per round and client; a word where they are too many."""
    if run.rounds * len(run.clients) > DETAILS:
        return page.text("Too many to list here: fedmpi export-scalars writes clients.csv, which has them all.")
    codes, kept = run["clients/crr_decision"], run["clients/density"]
    probes = [run[f"clients/crr_{name}"] for name in ("received", "before", "after")]
    rows = []
    for t in range(run.rounds):
        for k, name in enumerate(run.clients):
            values = ["--" if np.isnan(p[t, k]) else f"{p[t, k]:.4f}" for p in probes]
            rows.append([name, str(t), DECISIONS[int(codes[t, k])], *values, f"{kept[t, k]:.4f}"])
    return page.table(["client", "round", "decision", "received", "old mask", "new mask", "density"], rows)


def weights(run: Run) -> list[str]:
    """Return the aggregation weights over rounds."""
    caption = "Weights sum to 1 over the clients whose updates were merged."
    return [
        page.picture(figures.weights(run), "aggregation weights, KLAW and PRAW of every client over rounds", caption)
    ]


def training(run: Run) -> list[str]:
    """Return losses and clustering."""
    made = figures.training(run)
    return [page.picture(made, "losses, clusters and outliers of every client over rounds")] if made else []


def times(run: Run) -> list[str]:
    """Return where time went, at the server and at the clients."""
    parts = figures.server_seconds(run)
    total = float(run["rounds/seconds"].sum())
    rows = [
        [word, common.duration(float(x.sum())), f"{common.percent(float(x.sum()) / total)} %"]
        for word, x in parts.items()
    ]
    merging = float(np.nansum(run["rounds/seconds_merge"]))
    return [
        page.table(["stage", "whole run", "share"], [*rows, ["rounds", common.duration(total), ""]], total=True),
        page.text(f"Merging, inside the uplink: {common.duration(merging)}.", "soft"),
        page.picture(figures.times(run), "seconds of every round by stage, and of every client by activity"),
    ]


def other_links(run: Run) -> list[str]:
    """Return the prediction over other links."""
    replayed = predict.replay(run)
    forecasts = [predict.forecast(replayed, link) for link in PRESETS.values()]
    caption = (
        "The recorded messages, replayed through a model of each link: clients work side by side and share the "
        "server's link; local work as measured here. Speed-ups are against the same messages sent dense."
    )
    return [page.picture(predict.draw(run, forecasts), "time of a round over links from InfiniBand to 4G", caption)]


def provenance(run: Run) -> list[str]:
    """Return where the run came from, one column for every process that worked on it."""
    processes: list[dict[str, Any]] = [dict(run.provenance), *run.resumes]
    names = list(dict.fromkeys(name for items in processes for name in items if name != "config"))
    head = [["", "begun", *(f"resume {n}" for n in range(1, len(processes)))]] if len(processes) > 1 else []
    rows = [[name.replace("_", " "), *(_text(items.get(name, "")) for items in processes)] for name in names]
    state = [["begun", run.created], ["stopped", run.stopped], ["status", run.status], ["error", run.error]]
    return [
        page.facts([row for row in state if row[1]]),
        page.facts([*head, *rows]),
        page.folded("The whole configuration", page.verbatim(_text(run.provenance.get("config", "")))),
    ]


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
