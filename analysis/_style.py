"""How figures look and are written: without a display, the same bytes every time, for colour-blind readers."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

try:
    import matplotlib as mpl
except ImportError as error:
    raise SystemExit("matplotlib is not installed; it comes with: pip install 'fedmpi[analysis]'") from error

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#A6761D")
"""Okabe and Ito's palette, which stays apart for all common kinds of colour blindness; its yellow and black, too pale
and too heavy for lines, are a brown and a grey here."""
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: Final = ("-", "--", "-.", ":")
DENSE: Final = "#000000"
"""Colour of the dense reference, always dashed."""
GREY: Final = "#8C8C8C"
SCALE: Final = "viridis"
"""Colour scale of heat maps: lightness alone tells the values apart, for colour-blind readers and in grey print."""
FEW_ROUNDS: Final = 60
"""Up to so many rounds have a bar each."""
MANY: Final = 10
"""More lines than this are drawn as a range and their mean, with no legend entry each."""

_SETTINGS: Final[Any] = {
    "figure.figsize": (7.2, 4.2),
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # matplotlib brings it along: the same figure on every machine
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "svg.hashsalt": "fedmpi",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
mpl.rcdefaults()  # whatever matplotlibrc says
mpl.rcParams.update(_SETTINGS)

_NO_DATE: Final[dict[str, dict[str, Any]]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


def figure(rows: int = 1, columns: int = 1, **settings: Any) -> tuple[Figure, npt.NDArray[Any]]:  # noqa: ANN401
    """Return a figure and its axes as an array ``[rows, columns]``; ``figsize`` is in inches."""
    made = Figure(figsize=settings.pop("figsize", None))
    return made, made.subplots(rows, columns, squeeze=False, **settings)


def save(made: Figure, folder: Path, name: str, formats: Sequence[str]) -> None:
    """Write a figure in every image format of ``formats``, and name the files."""
    for kind in formats:
        if kind in _NO_DATE:
            path = folder / f"{name}.{kind}"
            made.savefig(path, metadata=_NO_DATE[kind])
            click.echo(str(path))


def svg(made: Figure) -> bytes:
    """Return a figure as SVG."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="svg", metadata=_NO_DATE["svg"])
    return buffer.getvalue()


def line_styles() -> Iterator[dict[str, Any]]:
    """Yield styles of lines without end: colour and marker differ first, then the dashes."""
    number = 0
    while True:
        turn, place = divmod(number, len(COLOURS))
        yield {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": DASHES[turn % len(DASHES)]}
        number += 1


def byte_scale(largest: float) -> tuple[float, str]:
    """Return divisor and unit in which bytes up to ``largest`` read well (decimal, as the field counts)."""
    for divisor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= divisor:
            return divisor, unit
    return 1.0, "byte"


def rounds_axis(axis: Axes, label: str = "round, from 0") -> None:
    """Make the x axis one of whole rounds."""
    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def outside_legend(axis: Axes, **settings: Any) -> None:  # noqa: ANN401 - matplotlib's own arguments
    """Put the legend to the right of the axes, where it hides nothing."""
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, **settings)


def client_lines(axis: Axes, x: npt.NDArray[Any], y: npt.NDArray[Any], names: Sequence[str]) -> None:
    """Draw ``y`` [rounds, clients] as one line per client; as range and mean where there are too many to tell apart."""
    if len(names) > MANY:
        known = ~np.isnan(y).all(axis=1)
        x, y = x[known], y[known]
        axis.fill_between(x, np.nanmin(y, axis=1), np.nanmax(y, axis=1), color=COLOURS[0], alpha=0.18, lw=0)
        low, high = np.nanquantile(y, [0.25, 0.75], axis=1)
        axis.fill_between(x, low, high, color=COLOURS[0], alpha=0.3, lw=0, label="middle half of the clients")
        axis.plot(x, np.nanmean(y, axis=1), color=COLOURS[0], label=f"mean of {len(names)} clients (light: range)")
        return
    for name, values, style in zip(names, y.T, line_styles(), strict=False):
        known = ~np.isnan(values)
        axis.plot(x[known], values[known], label=name, markevery=max(1, len(x) // 12), **style)


def stack(axis: Axes, rounds: npt.NDArray[Any], parts: Mapping[str, npt.NDArray[Any]], colours: Sequence[str]) -> None:
    """Stack the numbers of every round, ``parts`` by label: as bars, or as one area where bars would be hairs."""
    base = np.zeros(len(rounds))
    for (label, heights), colour in zip(parts.items(), colours, strict=False):
        if len(rounds) <= FEW_ROUNDS:
            axis.bar(rounds, heights, 0.8, bottom=base, color=colour, label=label)
            axis.set_xlim(-0.6, len(rounds) - 0.4)
        else:
            axis.fill_between(rounds, base, base + heights, step="mid", color=colour, lw=0, label=label)
        base = base + heights
    axis.set_ylim(bottom=0)


def heat_map(axis: Axes, values: npt.NDArray[Any], **settings: Any) -> Any:  # noqa: ANN401 - matplotlib's own
    """Draw ``values`` [rows, columns] as a heat map, row 0 on top; cells that were not measured stay grey."""
    axis.grid(visible=False)
    settings = {"aspect": "auto", "interpolation": "nearest", "cmap": mpl.colormaps[SCALE], **settings}
    settings["cmap"] = settings["cmap"].with_extremes(bad="#DDDDDD")
    return axis.imshow(np.ma.masked_invalid(values), **settings)


def name_rows(axis: Axes, names: Sequence[str], room: int = 34) -> None:
    """Label the rows of a heat map; where they are too many, every so many-th of them."""
    step = max(1, -(-len(names) // room))
    axis.set_yticks(range(0, len(names), step), list(names)[::step])
