"""Pieces of one self-contained HTML page: no script, no style sheet or image from elsewhere."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Final

import _style as style
from matplotlib.figure import Figure

_CSS: Final = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --blue: #0072b2; --back: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h1 small { font-size: .95rem; vertical-align: middle; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 78ch; } .soft { color: var(--soft); }
nav { margin: .8rem 0 1.2rem; }
nav a { margin-right: 1.1rem; color: var(--blue); text-decoration: none; white-space: nowrap; }
.badge { padding: .1rem .55rem; border-radius: 1rem; color: #fff; background: #59636e; font-weight: 600; }
.badge.finished { background: #00735a; } .badge.failed { background: #b23c00; } .badge.running { background: #0072b2; }
.badge.stopped { background: #8a6100; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.tile { flex: 1 1 11rem; padding: .7rem .9rem; background: var(--back); border-radius: .5rem; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; } .tile span { color: var(--soft); }
.notes { padding: .6rem 1.1rem; background: #fff6e5; border-left: 4px solid #e69f00; border-radius: .2rem; }
.notes ul { margin: .2rem 0; padding-left: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; background: var(--back); white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child, .words th:last-child, .words td:last-child { text-align: left; }
tr.total td { font-weight: 600; border-top: 2px solid var(--line); }
table.facts td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .88rem; max-width: 90ch; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--blue); }
pre { padding: .8rem; background: var(--back); border-radius: .4rem; overflow-x: auto; font-size: .82rem; }
@media print { nav { display: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""

_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Even a browser that is asked to may load nothing from elsewhere."""


_HYPHEN: Final = "\N{NON-BREAKING HYPHEN}"


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole page."""
    head = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body><main>",
    ]
    return "\n".join([*head, *body, "</main></body></html>\n"])


def section(key: str, title: str, parts: Sequence[str]) -> str:
    """Return a section with a heading that can be linked to; nothing when it has no parts."""
    parts = [part for part in parts if part]
    return "\n".join([f'<section id="{key}"><h2>{escape(title)}</h2>', *parts, "</section>"]) if parts else ""


def text(words: str, kind: str = "") -> str:
    """Return a paragraph; ``kind`` is its class."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def heading(words: str) -> str:
    """Return a small heading."""
    return f"<h3>{escape(words)}</h3>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False, words: bool = False) -> str:
    """Return a table of numbers, nothing without rows.

    The first column is flush left, the last one too where it holds ``words``; ``total`` sets the last row apart.
    """
    if not rows:
        return ""
    names = (escape(cell.replace("-", _HYPHEN)) for cell in head)
    lines = [f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"]
    for number, row in enumerate(rows, 1):
        mark = ' class="total"' if total and number == len(rows) else ""
        lines.append(f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    kind = ' class="words"' if words else ""
    return f'<div class="wide"><table{kind}>{"".join(lines)}</table></div>'


def facts(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of names and texts."""
    lines = (f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="facts">{"".join(lines)}</table></div>'


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Return the headline figures: number, what it is, and what it is to be seen against."""
    inner = (f'<div class="tile"><b>{escape(b)}</b>{escape(w)}<br><span>{escape(s)}</span></div>' for b, w, s in items)
    return f'<div class="tiles">{"".join(inner)}</div>'


def notes(items: Sequence[str]) -> str:
    """Return what a reader must know, as a list in a box; nothing without items."""
    inner = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<div class="notes"><ul>{inner}</ul></div>' if items else ""


def picture(made: Figure, what: str, caption: str = "") -> str:
    """Return a figure as an image inside the page; ``what`` is its text for those who do not see it."""
    data = base64.b64encode(style.svg(made)).decode()
    legend = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(what)}" src="data:image/svg+xml;base64,{data}">{legend}</figure>'


def folded(title: str, inside: str) -> str:
    """Return something that is shown on a click; nothing when it is empty."""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>" if inside else ""


def verbatim(words: str) -> str:
    """Return text as it stands."""
    return f"<pre>{escape(words)}</pre>"
