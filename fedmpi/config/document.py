"""YAML text to plain values, each with the place where it was written.

The scalars follow YAML 1.2: ``1e-3`` is a number, ``off`` and ``no`` are words (keys that are switches accept them),
``12:30`` is text. Duplicate keys, tags, anchors and aliases are refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fedmpi.config.schema import KeyPath, section_at, takes_text

_LONGEST_VALUE = 60
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, object] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
    ".inf": float("inf"),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}


@dataclass(frozen=True)
class Place:
    """Where a key and its value were written: ``file:line:column``, or the ``--set`` argument."""

    key: str
    value: str
    names_key: bool = False
    """True when the text of the place already says which key it is (``--set crr.tau1=abc``)."""


@dataclass
class Document:
    """A mapping as written, with the place of everything in it and the lines of the mistakes found so far."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Composes nodes without YAML 1.1's implicit types and without aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own attribute)

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:  # noqa: ANN401  (PyYAML's signature)
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            problem = "aliases are not supported; write the value out or use 'base: file.yaml'"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        node: Node | None = super().compose_node(parent, index)
        return node


def compose(text: str) -> Node | None:
    """Return the root node of one YAML document, None when it is empty; raises ``yaml.YAMLError``."""
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def scalar(text: str) -> object:
    """Return the value of a plain scalar after YAML 1.2: null, bool, int, float or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


@dataclass
class Reader:
    """Turns nodes into values; ``where`` writes the place of a node."""

    where: Callable[[Node], str]
    document: Document = field(default_factory=Document)
    names_key: KeyPath | None = None
    """The path that the text of every place already names, None in files."""

    def read(self, node: Node, path: KeyPath) -> object:
        """Return the value of a node and note the places below it."""
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            self._refuse_tag(node, "tag:yaml.org,2002:seq")
            return [self._item(item, (*path, index)) for index, item in enumerate(node.value)]
        self._refuse_tag(node, "tag:yaml.org,2002:str")
        if isinstance(node, ScalarNode) and node.style is None:
            value = scalar(node.value)
            return node.value if value is not None and takes_text(path) else value
        return node.value

    def _item(self, node: Node, path: KeyPath) -> object:
        place = self.where(node)
        self.document.places[path] = Place(place, place)
        return self.read(node, path)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, object]:
        self._refuse_tag(node, "tag:yaml.org,2002:map")
        values: dict[str, object] = {}
        first: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self.where(key_node)
            if not isinstance(key_node, ScalarNode):
                self._mistake(place, path, "keys must be single words")
                continue
            name = key_node.value
            if name in first:
                line = first[name].start_mark.line + 1
                self._mistake(place, (*path, name), f"given twice, first in line {line}")
                continue
            first[name] = key_node
            self.document.places[*path, name] = Place(place, self.where(value_node), self.names_key == (*path, name))
            value = self.read(value_node, (*path, name))
            if section_at((*path, name)) is not None and not isinstance(value, dict | None):
                self._mistake(self.where(value_node), (*path, name), not_a_section(value))
            elif value is not None or section_at((*path, name)) is None:  # a section may have all keys commented out
                values[name] = value
        return values

    def _refuse_tag(self, node: Node, plain: str) -> None:
        if node.tag not in (plain, "!"):
            self._mistake(self.where(node), (), f"tags such as {node.tag} are not supported")

    def _mistake(self, place: str, path: KeyPath, what: str) -> None:
        dotted = ".".join(map(str, path))
        self.document.mistakes.append(f"{place}: {dotted}: {what}" if dotted else f"{place}: {what}")


def not_a_section(value: object) -> str:
    """Return what is wrong with a section that is no mapping."""
    return f"must be a mapping of keys, got {shown(value)}"


def shown(value: object) -> str:
    """Return a value as one would write it in YAML, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def syntax_problem(error: yaml.YAMLError) -> tuple[str, str]:
    """Return the place ``:line:column`` (or nothing) and what is wrong there, for text that is no YAML."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "is not YAML")
    if "'\\t'" in problem:
        problem = "a tab cannot start a token; indent with spaces"
    return f":{mark.line + 1}:{mark.column + 1}" if mark is not None else "", problem
