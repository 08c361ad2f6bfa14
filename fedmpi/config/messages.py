"""Pydantic's findings as short lines: where, which key, what is wrong, what was probably meant."""

from collections.abc import Mapping, Sequence

from pydantic_core import ErrorDetails

from fedmpi.config.base import note
from fedmpi.config.baselines import method_names
from fedmpi.config.document import Document, Place, shown
from fedmpi.config.schema import KeyPath, field_at, literals, meant, meant_key, section_at

_KINDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
}
_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


def lines(errors: Sequence[ErrorDetails], document: Document) -> list[str]:
    """Return one line per mistake, in the order of the sections."""
    return [line for error in errors for line in _lines(error, document)]


def _lines(error: ErrorDetails, document: Document) -> list[str]:
    path: KeyPath = tuple(error["loc"])
    if error["type"] == "problems":
        found = error["ctx"]["found"]
        return [_line(document, (*path, *name.split(".")), what, at_key=False) for name, what in found]
    if error["type"] == "extra_forbidden":
        return [_line(document, path, unknown_key(path), at_key=True)]
    return [_line(document, path, _what(error, path), at_key=False)]


def _line(document: Document, path: KeyPath, what: str, *, at_key: bool) -> str:
    place = _place(document, path)
    dotted = ".".join(map(str, path))
    if place is None:
        return f"{dotted}: {what}"
    where = place.key if at_key else place.value
    return f"{where}: {what}" if place.names_key and path in document.places else f"{where}: {dotted}: {what}"


def _place(document: Document, path: KeyPath) -> Place | None:
    """Return the place of a path, or of the nearest thing around it that was written."""
    for length in range(len(path), 0, -1):
        if path[:length] in document.places:
            return document.places[path[:length]]
    return None


def unknown_key(path: KeyPath) -> str:
    """Return what is wrong with a key that does not exist."""
    section = section_at(path[:-1])
    valid = f" (valid: {', '.join(section.model_fields)})" if section else ""
    kind = "section" if len(path) == 1 else "key"
    return f"unknown {kind}{meant_key(path)}{valid}"


def _what(error: ErrorDetails, path: KeyPath) -> str:
    """Return what is wrong with the value of a key."""
    kind, value = error["type"], error["input"]
    field = field_at(path)
    if kind == "literal_error" and field is not None:
        valid = [str(choice) for choice in literals(field.annotation)]
        return f"must be one of {', '.join(valid)}, got {shown(value)}{meant(str(value), valid)}"
    if kind == "method":
        return f"{error['msg']}, got {shown(value)}{meant(str(value), method_names())}"
    if kind in _BOUNDS and field is not None:
        return f"must be {note(field, 'bounds')}, got {shown(value)}"
    if kind == "tuple_type":
        example = "" if value is None or isinstance(value, Mapping) else f", such as [{value}]"
        return f"must be a list{example}, got {shown(value)}"
    if kind == "ide_times":
        return error["msg"]
    return f"{_KINDS.get(kind, error['msg'])}, got {shown(value)}"
