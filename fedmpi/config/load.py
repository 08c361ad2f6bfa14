"""Reading run descriptions: files with bases, shipped ones by name, ``--set`` arguments; all mistakes at once."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import fedmpi
from fedmpi.config import messages
from fedmpi.config.document import Document, Place, Reader, compose, shown, syntax_problem
from fedmpi.config.model import RunConfig
from fedmpi.config.overrides import read_overrides
from fedmpi.config.schema import KeyPath, meant, section_at
from fedmpi.errors import ConfigError

DEFAULT = "quickstart"
LARGEST_FILE = 1_000_000
"""Bytes; more is no run description but something passed by mistake."""


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run that a file describes, changed by ``section.key=value`` texts, the last one winning.

    Parameters
    ----------
    path
        A YAML file, or the name of a shipped description (``quickstart``) when no such file exists;
        None = ``quickstart``.
    overrides
        The arguments of ``--set``.

    Raises
    ------
    ConfigError
        With one line per mistake, ``file:line:column: section.key: what is wrong``, all of them at once.
    """
    document = _read_file(_find(str(path if path is not None else DEFAULT), Path(), "").absolute(), ())
    for override in read_overrides(overrides):
        _merge(document, override)
    return _validated(document)


def _validated(document: Document) -> RunConfig:
    found = list(document.mistakes)
    try:
        config = RunConfig.model_validate(document.values)
    except ValidationError as error:
        found += messages.lines(error.errors(include_url=False), document)
    if found:
        raise ConfigError("\n".join(sorted(found, key=_order)))
    return config


def _order(mistake: str) -> tuple[bool, str, int, int]:
    """Sort the mistakes of files by place; those of ``--set`` follow in their order."""
    place = re.match(r"(?!--set )(.+?):(\d+):(\d+): ", mistake)
    return (False, place[1], int(place[2]), int(place[3])) if place else (True, "", 0, 0)


def builtin_config_dir() -> Path:
    """Return the folder of the shipped descriptions: inside an installed package, else beside it in the source tree."""
    package = Path(fedmpi.__file__).parent
    for folder in (package / "_configs", package.parent / "configs"):
        if (folder / f"{DEFAULT}.yaml").is_file():
            return folder
    raise ConfigError(
        f"the shipped configurations are neither in {package / '_configs'} nor in {package.parent / 'configs'}"
    )


def builtin_names() -> tuple[str, ...]:
    """Return the names of the shipped descriptions, sorted."""
    return tuple(sorted(file.stem for file in builtin_config_dir().glob("*.yaml")))


def _find(name: str, folder: Path, asked_by: str) -> Path:
    """Return the file of a name: as a path from ``folder``, else among the shipped ones."""
    file = folder / Path(name).expanduser()
    if file.is_file():
        return file
    bare = name.removesuffix(".yaml")
    if "/" not in bare and bare in builtin_names():
        return builtin_config_dir() / f"{bare}.yaml"
    reason = "is a folder, not a file" if file.is_dir() else "no such file"
    shipped = ", ".join(builtin_names())
    raise ConfigError(f"{asked_by}{name}: {reason}{meant(bare, builtin_names())} (shipped: {shipped})")


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{shorten(file)}: is larger than {LARGEST_FILE} bytes: not a run description")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{shorten(file)}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shorten(file)}: is not UTF-8 text (byte {error.start + 1}): not a run description"
        ) from error


def _read_file(file: Path, asked_by: tuple[Path, ...]) -> Document:
    """Return a file merged onto its bases; ``asked_by`` are the files that lead here."""
    source = shorten(file)
    try:
        node = compose(_read_text(file))
    except yaml.YAMLError as error:
        place, what = syntax_problem(error)
        raise ConfigError(f"{source}{place}: {what}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: is nested too deeply") from error
    reader = Reader(lambda node: f"{source}:{node.start_mark.line + 1}:{node.start_mark.column + 1}")
    values = None if node is None else reader.read(node, ())
    if not isinstance(values, dict | None):
        raise ConfigError(f"{source}: must be a mapping of sections, got {shown(values)}")
    document = reader.document
    document.values = values or {}
    return _on_base(document, file, (*asked_by, file))


def _on_base(document: Document, file: Path, chain: tuple[Path, ...]) -> Document:
    """Return a document laid over the file that its ``base`` names; a base that fails is one of its mistakes."""
    name = document.values.pop("base", None)
    place = document.places.pop(("base",), None)
    if name is None or place is None:
        return document
    try:
        below = _read_base(name, f"{place.value}: base: ", file.parent, chain)
    except ConfigError as error:
        document.mistakes.append(str(error))
        return document
    _merge(below, document)
    return below


def _read_base(name: object, asked_by: str, folder: Path, chain: tuple[Path, ...]) -> Document:
    if not isinstance(name, str):
        raise ConfigError(f"{asked_by}must be one file name, got {shown(name)}")
    base = _find(name, folder, asked_by)
    if any(base.samefile(earlier) for earlier in chain):
        raise ConfigError(f"{asked_by}{name} leads back to itself")
    return _read_file(base, chain)


def _merge(below: Document, above: Document) -> None:
    """Lay one document over another: sections are merged, values replaced."""
    below.values = _merged(below.values, above.values, ())
    for path, place in above.places.items():
        if _is_written(below.places.get(path), path):
            below.places = {old: where for old, where in below.places.items() if old[: len(path)] != path}
        below.places[path] = place
    below.mistakes += above.mistakes


def _is_written(place: Place | None, path: KeyPath) -> bool:
    """Tell whether a value that is replaced as a whole, not a section, has a place already."""
    return place is not None and section_at(path) is None


def _merged(below: dict[str, Any], above: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    result = dict(below)
    for name, value in above.items():
        here = (*path, name)
        result[name] = value if section_at(here) is None else _merged(result.get(name, {}), value, here)
    return result


def shorten(file: Path) -> str:
    """Return a path relative to the working directory where that is shorter to read."""
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_relative_to(here) else str(file)
