"""``--set section.key=value`` arguments."""

from collections.abc import Iterator, Sequence

import yaml
from yaml.nodes import CollectionNode

from fedmpi.config.document import Document, Place, Reader, compose, not_a_section, syntax_problem
from fedmpi.config.messages import unknown_key
from fedmpi.config.schema import KeyPath, field_at, section_at, takes_text

_STRUCTURED = ("[", "{", "'", '"')


def read_overrides(arguments: Sequence[str]) -> Iterator[Document]:
    """Yield one document per argument, in order; mistakes are noted in it rather than raised."""
    for argument in arguments:
        yield _read(argument)


def _read(argument: str) -> Document:
    source = f"--set {argument}"
    dotted, equals, text = argument.partition("=")
    path: KeyPath = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(path):
        return Document(mistakes=[f"{source}: must read section.key=value"])
    if section_at(path) is None and not _is_key(path):
        return Document(mistakes=[f"{source}: {unknown_override(path)}"])
    reader = Reader(lambda _node: source, names_key=path)
    try:
        value = _value(text.strip(), path, reader)
    except yaml.YAMLError as error:
        return Document(mistakes=[f"{source}: {syntax_problem(error)[1]}"])
    except ValueError as error:
        return Document(mistakes=[f"{source}: {error}"])
    if section_at(path) is not None and not isinstance(value, dict):
        return Document(mistakes=[f"{source}: {not_a_section(value)}"])
    return _nested(reader.document, path, value, source)


def _is_key(path: KeyPath) -> bool:
    return field_at(path) is not None and section_at(path[:-1]) is not None


def unknown_override(path: KeyPath) -> str:
    """Return what is wrong with a dotted name that is neither a key nor a section."""
    length = next(n for n in range(1, len(path) + 1) if section_at(path[:n]) is None)
    first = ".".join(map(str, path[:length]))
    if field_at(path) is not None:
        return f"{first} has no keys below it; set its whole value"
    return unknown_key(path) if length == len(path) else f"{first}: {unknown_key(path[:length])}"


def _value(text: str, path: KeyPath, reader: Reader) -> object:
    """Return the value of an argument: literal where the key takes text, YAML in one line elsewhere."""
    if takes_text(path) and text not in ("", "~", "null") and not text.startswith(_STRUCTURED):
        return text
    node = compose(text)
    if isinstance(node, CollectionNode) and not node.flow_style:
        raise ValueError("must be one value, a list such as [1, 2] or a mapping such as {a: 1}")
    return reader.read(node, path) if node is not None else None


def _nested(document: Document, path: KeyPath, value: object, source: str) -> Document:
    """Wrap a value in its sections and give each of them the argument as its place."""
    for length in range(len(path), 0, -1):
        document.places[path[:length]] = Place(source, source, names_key=length == len(path))
        value = {str(path[length - 1]): value}
    if isinstance(value, dict):
        document.values = value
    return document
