"""Tables of text cells for the terminal, Markdown and LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import _common as common
import click
import numpy as np
from _quantities import Floats

MISSING = "--"


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of cells; in the columns ``best`` the largest number is set in bold."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: tuple[int, ...] = ()


def deviation(numbers: Floats) -> float:
    """Return the sample standard deviation; NaN of fewer than two numbers."""
    return float(numbers.std(ddof=1)) if len(numbers) > 1 else float("nan")


def spread(numbers: Floats, digits: int = 1, *, signed: bool = False) -> str:
    """Return ``mean ± standard deviation`` of what was measured in several seeds, the number alone for one."""
    known = numbers[~np.isnan(numbers)]
    if not known.size:
        return MISSING
    mean = f"{known.mean():{'+' * signed}.{digits}f}"
    return f"{mean} ± {deviation(known):.{digits}f}" if known.size > 1 else mean


def text(table: Table) -> str:
    """Return the table for the terminal."""
    return f"{table.title}\n{common.aligned(table.head, table.rows)}"


def markdown(table: Table) -> str:
    """Return the table in Markdown, best values in bold."""
    rows = _marked([[cell.replace("|", "\\|") for cell in row] for row in table.rows], table.best, "**{}**")
    head = [cell.replace("|", "\\|") for cell in table.head]
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return f"{table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(table: Table) -> str:
    """Return the table in LaTeX (package booktabs), best values in bold."""
    rows = _marked([[escaped(cell) for cell in row] for row in table.rows], table.best, "\\textbf{{{}}}")
    lines = [f"{' & '.join(row)} \\\\" for row in ([escaped(cell) for cell in table.head], *rows)]
    return "\n".join(
        [
            f"% {table.title}",
            f"\\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            "\\toprule",
            lines[0],
            "\\midrule",
            *lines[1:],
            "\\bottomrule",
            "\\end{tabular}",
        ]
    )


def escaped(cell: str) -> str:
    """Return a cell with LaTeX's own characters taken literally, and ± as it is written in mathematics."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    plain = re.sub(r"[\\~^±#$%&_{}]", lambda match: special.get(match[0], f"\\{match[0]}"), cell)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", plain)


def _marked(rows: Sequence[Sequence[str]], best: Sequence[int], mark: str) -> list[list[str]]:
    """Return the rows with the largest number of each column of ``best`` marked; nothing where there is one row."""
    marked = [list(row) for row in rows]
    for column in best if len(rows) > 1 else ():
        numbers = [_leading(row[column]) for row in rows]
        for row, number in zip(marked, numbers, strict=True):
            if number == max(numbers) and number > float("-inf"):
                row[column] = mark.format(row[column])
    return marked


def _leading(cell: str) -> float:
    """Return the number that a cell begins with, minus infinity if it begins with none."""
    match = re.match(r"-?\d+(\.\d+)?", cell)
    return float(match[0]) if match else float("-inf")


def write(path: Path, parts: Sequence[str]) -> None:
    """Write tables one below the other, and name the file."""
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    click.echo(str(path))
