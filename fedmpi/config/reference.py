"""The reference of all keys, written from their declarations.

``python -m fedmpi.config.reference > docs/configuration.md`` renews the page; a test compares it.
"""

import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from fedmpi.config.base import Section, is_output_only, may_change, note
from fedmpi.config.document import shown
from fedmpi.config.model import RunConfig
from fedmpi.config.schema import KeyPath, all_keys, field_at, literals, meant, section_at
from fedmpi.errors import ConfigError

_INTRODUCTION = """\
# Configuration

<!-- Generated from fedmpi/config/: edit there, then `python -m fedmpi.config.reference > docs/configuration.md`. -->

A run is described by a YAML file of sections and keys; every key has a default, so a file states only what differs.

- `fedmpi train FILE` takes a file or the name of a shipped one ({shipped}); without it, `quickstart`.
- `--set section.key=value`, any number of times, changes a key for one run; the last one wins.
- `base: other.yaml` at the top of a file (relative to it, or a shipped name) starts from another file. Sections are
  merged; a value, a list and the mapping of `data.ide` are replaced as a whole.
- `fedmpi config show FILE` prints every key as it will be used, `fedmpi config check FILE...` looks for mistakes,
  `fedmpi config explain KEY` prints what stands here.
- Scalars follow YAML 1.2: `1e-3` is a number; a switch also accepts yes, no, on, off; keys that take text take it as
  written (a client folder may be called `2024`). Duplicate keys, aliases and tags are mistakes.

The *source* of a default: **FedCAPR code** was read in that repository, the base of FedKLPR; **FedKLPR v1** in version
1 of the paper (arXiv 2508.17431); **[choice]** is fedmpi's own, because the paper does not say or could not be read: it
is not the paper's value; **fedmpi** has no counterpart in the papers.

The digest of a run covers every key but those marked *output only*, which cannot change results. A run is resumed with
the keys that it began with; those and the keys marked *may change on resuming* are free.
"""

_TYPES = {int: "whole number", float: "number", str: "text", bool: "true | false", Path: "path", type(None): "null"}


def render() -> str:
    """Return the reference page as Markdown; the same text for the same declarations."""
    shipped = "`quickstart`, `fedklpr`, `fedklpr-plus`"
    return _INTRODUCTION.format(shipped=shipped) + "".join(_render_section(RunConfig, ()))


def _render_section(section: type[Section], path: KeyPath) -> Iterator[str]:
    own = [(name, field) for name, field in section.model_fields.items() if section_at((*path, name)) is None]
    if path:
        title = ".".join(map(str, path))
        yield f"\n{'#' * (len(path) + 1)} {title}\n\n{_about(section)}\n"
    if own:
        yield "\n| key | type | default | unit | meaning | source |\n|---|---|---|---|---|---|\n"
        yield from (_row(name, field) for name, field in own)
    for name in section.model_fields:
        inner = section_at((*path, name))
        if inner is not None:
            yield from _render_section(inner, (*path, name))


def _about(section: type[Section]) -> str:
    return (inspect.getdoc(section) or "").replace("``", "`")


def _row(name: str, field: FieldInfo) -> str:
    source = note(field, "source")
    if may_change(field):
        source += ", output only" if is_output_only(field) else ", may change on resuming"
    default = f"`{default_text(field)}`"
    cells = (f"`{name}`", type_text(field), default, note(field, "unit"), field.description or "", source)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def type_text(field: FieldInfo) -> str:
    """Return what a key takes, in words: ``number between 0 and 1``, ``layer | global``, ``path or null``."""
    words = note(field, "type_text") or _words(field.annotation)
    bounds = note(field, "bounds")
    if not bounds:
        return words
    number, _, rest = words.partition(" or ")
    return f"{number} {bounds}" + (f", or {rest}" if rest else "")


def _words(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, literals(annotation)))
    if origin is Annotated:
        return _words(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_words(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {_words(arguments[0])}s".replace("texts", "names")
    return _TYPES[annotation]  # type: ignore[index]


def default_text(field: FieldInfo) -> str:
    """Return a default as one would write it in YAML."""
    default = field.default
    if isinstance(default, tuple):
        return f"[{', '.join(map(str, default))}]"
    return default if isinstance(default, str) else shown(default)


def explain(dotted: str) -> str:
    """Return what a key means, or what the keys of a section are.

    Raises
    ------
    ConfigError
        When there is no such key, with the nearest one.
    """
    path = tuple(dotted.split("."))
    section, field = section_at(path), field_at(path)
    if section is not None:
        keys = [key for key in all_keys() if key.startswith(f"{dotted}.")]
        lines = [f"{key} = {default_text(_field(key))}: {_field(key).description}" for key in keys]
        return "\n".join([_about(section), *lines])
    if field is None or dotted not in all_keys():
        hint = _same_name(dotted) or meant(dotted, [*all_keys(), *RunConfig.model_fields])
        raise ConfigError(f"{dotted}: unknown key{hint} ('fedmpi config show' lists all keys)")
    lines = [f"{dotted} = {default_text(field)}", f"  {field.description}", f"  type:   {type_text(field)}"]
    lines += [f"  unit:   {note(field, 'unit')}"] if note(field, "unit") else []
    return "\n".join([*lines, f"  source: {note(field, 'source')}"])


def _field(dotted: str) -> FieldInfo:
    field = field_at(dotted.split("."))
    if field is None:
        raise KeyError(dotted)
    return field


def _same_name(dotted: str) -> str:
    """Return a hint for a name given without its section."""
    same = [key for key in all_keys() if key.endswith(f".{dotted}")]
    return f"; did you mean {' or '.join(repr(key) for key in same)}?" if same else ""


if __name__ == "__main__":
    sys.stdout.write(render())
