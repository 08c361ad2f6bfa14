"""Looking up keys in the models: which exist, what they take, which one was probably meant."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
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


def bounds_text(field: FieldInfo) -> str:
    """Return the bounds of a number in words: ``between 0 and 1``, ``at least 1``; empty when it has none."""
    ge, gt, le, lt = (_bound(field, kind) for kind in (Ge, Gt, Le, Lt))
    if ge is not None and le is not None:
        return f"between {_plain(ge)} and {_plain(le)}"
    low = f"at least {_plain(ge)}" if ge is not None else f"greater than {_plain(gt)}" if gt is not None else ""
    high = f"at most {_plain(le)}" if le is not None else f"less than {_plain(lt)}" if lt is not None else ""
    return " and ".join(part for part in (low, high) if part)


def _bound(field: FieldInfo, kind: type[Ge | Gt | Le | Lt]) -> float | None:
    for item in field.metadata:
        if isinstance(item, kind):
            return getattr(item, kind.__name__.lower())  # type: ignore[no-any-return]
    return None


def _plain(bound: float | None) -> str:
    """Write 1.0 as 1: a bound is the same for whole numbers and others."""
    return str(int(bound)) if bound is not None and float(bound).is_integer() and abs(bound) < 1e16 else f"{bound}"


def meant(word: str, valid: Sequence[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest valid word, or nothing."""
    near = get_close_matches(word, valid, n=1, cutoff=0.6) or get_close_matches(
        word.lower(), [name for name in valid if name.lower() != name] or list(valid), n=1, cutoff=0.6
    )
    return f"; did you mean '{near[0]}'?" if near else ""


def meant_key(path: Sequence[str | int]) -> str:
    """Return ``; did you mean ...?`` for an unknown key: the same name in another section, else a near one here."""
    section, dotted = section_at(path[:-1]), ".".join(map(str, path))
    elsewhere = [key for key in all_keys() if key.endswith((f".{dotted}", f".{path[-1]}"))]
    if elsewhere:
        return f"; did you mean {' or '.join(repr(key) for key in elsewhere[:3])}?"
    return meant(str(path[-1]), list(section.model_fields) if section else [])
