"""The tables of docs/hdf5-schema.md, made from the schema: ``python -m fedmpi.record.document docs/hdf5-schema.md``."""

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from fedmpi.record import schema
from fedmpi.record.messages import CODINGS, DIRECTIONS, MASK_MODES, MESSAGE_COLUMNS
from fedmpi.record.texts import ROOT_TEXTS


def updated(text: str) -> str:
    """Return the document with everything between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` generated anew.

    KeyError for a NAME that is no group, nor ``messages``, ``directions``, ``mask-modes``, ``codings`` or ``texts``.
    """
    parts = {name: _variables(variables) for name, variables in schema.GROUPS.items()}
    parts |= {"messages": _columns(), "directions": _words(DIRECTIONS), "mask-modes": _words(MASK_MODES)}
    parts |= {"codings": _words(CODINGS)}
    parts |= {"texts": ", ".join(f"`{name}` ({size} bytes)" for name, size in ROOT_TEXTS.items())}
    pattern = r"(<!-- begin ([a-z-]+) -->\n).*?(<!-- end \2 -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{parts[match[2]]}\n{match[3]}", text, flags=re.DOTALL)


def _variables(variables: tuple[schema.Variable, ...]) -> str:
    head = ["| name | dimensions | type | units | default | meaning |", "|---|---|---|---|---|---|"]
    return "\n".join(head + [_row(variable) for variable in variables])


def _row(variable: schema.Variable) -> str:
    cells = [f"`{variable.name}`", ", ".join(variable.dims), _dtype(variable.dtype), variable.unit]
    return f"| {' | '.join(cells)} | {_default(variable)} | {variable.long_name}{_flags(variable)} |"


def _dtype(code: str) -> str:
    return {"f8": "float64", "f4": "float32", "i8": "int64", "i4": "int32", "i1": "int8"}[code]


def _default(variable: schema.Variable) -> str:
    if variable.default is None:
        return "required"
    return "NaN" if math.isnan(variable.default) else f"{variable.default:g}"


def _flags(variable: schema.Variable) -> str:
    if not variable.flags:
        return ""
    return ": " + ", ".join(f"{code} {word}" for code, word in variable.flags.items())


def _columns() -> str:
    names = {"<i4": "int32", "<i8": "int64", "<f8": "float64", "S8": "8-byte text"}
    rows = [f"| `{name}` | {names[kind]} | {unit} | {text} |" for name, (kind, unit, text) in MESSAGE_COLUMNS.items()]
    return "\n".join(["| column | type | units | meaning |", "|---|---|---|---|", *rows])


def _words(words: Mapping[str, str]) -> str:
    return "\n".join(["| word | meaning |", "|---|---|", *(f"| `{word}` | {text} |" for word, text in words.items())])


def main(paths: list[str]) -> None:
    """Rewrite the documents named on the command line."""
    for path in map(Path, paths):
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
