"""Figures of one run that only the report shows: pruning, weights, training and times."""

from collections.abc import Mapping
from typing import Any, Final

import _quantities as quantities
import _style as style
import numpy as np
import numpy.typing as npt
from _quantities import CLIENT_SECONDS, DECISIONS, PHASES, Floats
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fedmpi.record import Run

DECISION_COLOURS: Final = ("#E8E8E8", "#0072B2", "#E69F00", "#D55E00", "#009E73")
"""Off, accepted, halted, recovered, target reached; the letters in the cells say the same."""
DECISION_LETTERS: Final = (" ", "A", "H", "R", "T")
LOSSES: Final = {
    "loss_total": "training loss",
    "loss_intra": "intra-camera loss",
    "loss_inter": "inter-camera loss",
    "loss_kl": "KLL term",
}
ROOM: Final = 400
"""Cells up to which a heat map has letters in them."""


def measured(values: npt.NDArray[Any]) -> bool:
    """Return whether there is anything to draw."""
    return bool(values.size) and not np.isnan(values.astype(np.float64)).all()


def density(run: Run) -> Figure:
    """Draw the kept share of every client over rounds."""
    made, axes = style.figure(figsize=(9.0, 3.6))
    axis, values = axes[0, 0], run["clients/density"]
    style.client_lines(axis, np.arange(run.rounds), values, run.clients)
    axis.set(ylabel="prunable parameters kept (1)", ylim=(0, 1.03), title="density after each round")
    style.rounds_axis(axis)
    style.outside_legend(axis)
    return made


def decisions(run: Run) -> Figure:
    """Draw what cross-round recovery decided, as a grid of clients and rounds."""
    codes = run["clients/crr_decision"].T
    made, axes = style.figure(figsize=(9.0, min(9.0, 1.5 + 0.26 * len(run.clients))))
    axis = axes[0, 0]
    norm = BoundaryNorm(np.arange(len(DECISION_COLOURS) + 1) - 0.5, len(DECISION_COLOURS))
    style.heat_map(axis, codes.astype(np.float64), cmap=ListedColormap(DECISION_COLOURS), norm=norm)
    if codes.size <= ROOM:
        for (k, t), code in np.ndenumerate(codes):
            dark = code in {1, 3, 4}
            axis.text(t, k, DECISION_LETTERS[code], ha="center", va="center", fontsize=7, color="w" if dark else "k")
    present = sorted(set(codes.ravel().tolist()))
    patches = [Patch(color=DECISION_COLOURS[c], label=f"{DECISION_LETTERS[c]} {DECISIONS[c]}".strip()) for c in present]
    axis.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.set_title("decisions of cross-round recovery")
    style.name_rows(axis, run.clients)
    style.rounds_axis(axis)
    return made


def weights(run: Run) -> Figure:
    """Draw the aggregation weight of every client over rounds, and the two weights that it is made of."""
    parts = {"weight": "aggregation weight", "klaw": "KLAW", "praw": "PRAW"}
    known = {name: run[f"clients/{name}"] for name in parts if measured(run[f"clients/{name}"])}
    height = min(8.0, 1.4 + 0.26 * len(run.clients))
    made, axes = style.figure(1, len(known), figsize=(3.2 * len(known) + 1.2, height), sharey=True)
    largest = max(float(np.nanmax(values)) for values in known.values())
    for axis, (name, values) in zip(axes[0], known.items(), strict=True):
        image = style.heat_map(axis, values.T, vmin=0, vmax=largest)
        axis.set_title(parts[name])
        style.rounds_axis(axis)
    style.name_rows(axes[0, 0], run.clients)
    made.colorbar(image, ax=axes[0, -1], label="weight (1)")
    return made


def training(run: Run) -> Figure | None:
    """Draw losses and clustering of every client over rounds; None when nothing was recorded."""
    panels: dict[str, Floats] = {text: run[f"clients/{name}"] for name, text in LOSSES.items()}
    panels |= {"clusters": _counts(run, "clusters"), "outliers, share of the images": _share(run)}
    panels = {text: values for text, values in panels.items() if measured(values)}
    if not panels:
        return None
    rows = -(-len(panels) // 3)
    made, axes = style.figure(rows, 3, figsize=(10.6, 2.7 * rows))
    for axis, (text, values) in zip(axes.flat, panels.items(), strict=False):
        style.client_lines(axis, np.arange(run.rounds), values, run.clients)
        axis.set(title=text, ylim=(0, None), ylabel="count (1)" if text == "clusters" else "(1)")
        style.rounds_axis(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return made


def _counts(run: Run, name: str) -> Floats:
    """Return a count of every round and client, NaN where it was not measured (-1 in the file)."""
    values = run[f"clients/{name}"]
    return np.where(values < 0, np.nan, values.astype(np.float64))


def _share(run: Run) -> Floats:
    images = _counts(run, "train_images")
    return _counts(run, "outliers") / np.where(images > 0, images, np.nan)


def times(run: Run) -> Figure:
    """Draw where the time of every round went at the server, and that of the mean round at every client."""
    height = max(3.4, min(9.0, 1.6 + 0.24 * len(run.clients)))
    made, axes = style.figure(1, 2, figsize=(10.6, height), width_ratios=[1.25, 1])
    left, right = axes[0]
    colours = (style.COLOURS[0], style.GREY, style.COLOURS[1], style.COLOURS[2], "#D0D0D0")
    style.stack(left, np.arange(run.rounds), server_seconds(run), colours)
    left.set(title="rounds, seen by the server", ylabel="wall time (s)")
    style.rounds_axis(left)
    base = np.zeros(len(run.clients))
    for (word, values), look in zip(client_seconds(run).items(), style.line_styles(), strict=False):
        right.barh(range(len(run.clients)), values, 0.75, left=base, color=look["color"], label=word)
        base += values
    right.set(title="clients, mean over rounds", xlabel="own time per round (s)", ylim=(len(run.clients) - 0.5, -0.5))
    style.name_rows(right, run.clients)
    for axis in (left, right) if base.any() else (left,):
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16 * 3.4 / height), ncols=4)
    return made


def server_seconds(run: Run) -> Mapping[str, Floats]:
    """Return the seconds of a round's stages, float64[rounds] by name; ``other`` is what no stage accounts for."""
    parts = {word: np.nan_to_num(run[f"rounds/{name}"]) for name, word in PHASES.items()}
    other = np.maximum(run["rounds/seconds"] - np.sum(list(parts.values()), axis=0), 0)
    return {**parts, "other": other}


def client_seconds(run: Run) -> Mapping[str, Floats]:
    """Return what clients did in a round, seconds averaged over rounds, float64[clients] by name, where measured."""
    parts = {word: run[f"clients/{name}"] for name, word in CLIENT_SECONDS.items()}
    return {word: quantities.row_means(values.T) for word, values in parts.items() if measured(values)}
