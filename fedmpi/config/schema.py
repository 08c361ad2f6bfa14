"""Looking up keys in the models: which exist, what they take, which one was probably meant."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from fedmpi.config.base import Section
from fedmpi.config.model import RunConfig

KeyPath = tuple[str | int, ...]
"""Section, sub-sections, key; then list indices or mapping keys inside its value."""


def section_at(path: Sequence[str | int]) -> type[Section] | None:
    """Return the model of a section path (empty = the root), or None when it is no section."""
    section: type[Section] = RunConfig
    for name in path:
        field = section.model_fields.get(str(name))
        if field is None or not _is_section(field.annotation):
            return None
        section = field.annotation  # type: ignore[assignment]
    return section


def field_at(path: Sequence[str | int]) -> FieldInfo | None:
    """Return the declaration of the key that a path lies in (list indices and the like are ignored), or None."""
    for length in range(1, len(path) + 1):
        section = section_at(path[: length - 1])
        field = section.model_fields.get(str(path[length - 1])) if section else None
        if field is None:
            return None
        if not _is_section(field.annotation):
            return field
    return None


@cache
def all_keys() -> tuple[str, ...]:
    """Return all keys as dotted names, in the order of the models."""
    return tuple(_keys(RunConfig, ""))


def _keys(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def takes_text(path: Sequence[str | int]) -> bool:
    """Tell whether a scalar at this place is text whatever it looks like (a client named ``2024``, ``ide: off``)."""
    for length in range(len(path), 0, -1):
        section = section_at(path[: length - 1])
        if section is not None:
            field = section.model_fields.get(str(path[length - 1]))
            return field is not None and _text_at(field.annotation, len(path) - length)
    return False


def _text_at(annotation: object, depth: int) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _text_at(arguments[0], depth)
    if origin in (Union, UnionType):
        return any(_text_at(argument, depth) for argument in arguments)
    if depth:  # inside a list or mapping: its items decide
        container = isinstance(origin, type) and issubclass(origin, tuple | Mapping)
        return container and _text_at(arguments[0 if origin is tuple else 1], depth - 1)
    if origin is Literal:
        return all(isinstance(value, str) for value in arguments)
    return annotation in (str, Path)


def literals(annotation: object) -> tuple[Any, ...]:
    """Return the listed values of an annotation, empty when it lists none."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for argument in get_args(annotation) for value in literals(argument))


def meant(word: str, valid: Sequence[str], *, cutoff: float = 0.6) -> str:
    """Return ``; did you mean 'x'?`` for the nearest valid word in whatever case (the first of equals), or nothing."""
    likeness = {name: SequenceMatcher(None, word.lower(), name.lower()).ratio() for name in valid}
    nearest = max(likeness, key=lambda name: likeness[name], default="")
    return f"; did you mean '{nearest}'?" if likeness.get(nearest, 0.0) >= cutoff else ""


def meant_key(path: Sequence[str | int]) -> str:
    """Return ``; did you mean ...?`` for an unknown key.

    A very near name in its section wins over the same name in exactly one other section, that over a near name.
    """
    section, word = section_at(path[:-1]), str(path[-1])
    here = list(section.model_fields) if section else []
    elsewhere = [key for key in all_keys() if key.endswith(f".{word}")]
    if len(elsewhere) == 1 and not meant(word, here, cutoff=0.8):
        return f"; did you mean '{elsewhere[0]}'?"
    return meant(word, here)
