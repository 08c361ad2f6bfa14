"""Results: one record per measured variant, as an aligned table and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fedmpi.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Record:
    """One variant.

    Attributes
    ----------
    bench
        ``kernels``, ``exchange``, ``scale``, ``codec``, ``device`` or ``peers``.
    name
        What was done.
    density
        Share of the parameters that is kept.
    plan
        By which implementation or collective, or of what a size is.
    coding
        How the values travel.
    seconds
        Median; None where nothing was timed.
    bytes
        What travels, or what the operation reads or writes of packed values; None where that means nothing.
    ratio_to_dense
        Seconds, bytes for a size, over those of the dense variant that the bench names; None where there is none.
    """

    bench: str
    name: str
    density: float
    plan: str
    coding: str
    seconds: float | None
    bytes: int | None
    ratio_to_dense: float | None


def table(rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """Return aligned lines; the first ``texts`` columns stand to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        pairs = zip(row, widths, strict=True)
        cells = (cell.ljust(w) if place < texts else cell.rjust(w) for place, (cell, w) in enumerate(pairs))
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def check_free(path: Path | None) -> None:
    """Raise ``ConfigError`` when ``path`` exists or cannot be made, before anything has been measured for it."""
    if path is None:
        return
    if path.exists():
        raise ConfigError(f"{path} exists: nothing is overwritten, choose another --json")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder: choose another --json")


def write_json(records: Sequence[Record], path: Path) -> None:
    """Write a list of objects with the fields of :class:`Record`.

    Raises
    ------
    ConfigError
        The file exists or cannot be written.
    """
    text = json.dumps([asdict(record) for record in records], indent=1, allow_nan=False) + "\n"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another --json") from error


def milliseconds(seconds: float) -> str:
    """Return a short time in ms, a long one in s."""
    return f"{1e3 * seconds:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def cell(value: float | None, digits: int) -> str:
    """Return a number with so many digits, ``--`` when there is none."""
    return "--" if value is None else f"{value:.{digits}f}"


def speed(record: Record) -> tuple[str, str, str, str]:
    """Return time, megabytes, gigabytes a second and ratio as cells."""
    size, seconds = record.bytes or 0, record.seconds or 0
    rate = size / 1e9 / seconds if seconds else None
    return milliseconds(seconds), cell(size / 1e6, 1), cell(rate, 2), cell(record.ratio_to_dense, 2)
