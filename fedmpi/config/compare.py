"""Two descriptions of the same run: which keys would change its results."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from fedmpi.config.base import may_change
from fedmpi.config.model import RunConfig, to_yaml
from fedmpi.config.schema import field_at

_MISSING = object()


def differences(written: str, config: RunConfig) -> list[str]:
    """Return ``key: what was written, what is now`` for every key that differs and would change results.

    ``written`` is what `to_yaml` gave when the run began, maybe in another version of fedmpi: a key that did not exist
    then counts as its default. Raises ``yaml.YAMLError`` for text that is not YAML.
    """
    then, now, default = (_flat(text) for text in (written, to_yaml(config), to_yaml(RunConfig())))
    found = []
    for path in dict.fromkeys([*then, *now]):
        old, new = then.get(path, default.get(path, _MISSING)), now.get(path, _MISSING)
        field = field_at(path.split("."))
        if old != new and not (field is not None and may_change(field, (old, new))):
            found.append(f"{path}: {_shown(old)} then, {_shown(new)} now")
    return found


def _flat(text: str) -> dict[str, Any]:
    content = yaml.safe_load(text)
    return dict(_leaves(content, "")) if isinstance(content, Mapping) else {}


def _leaves(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: object) -> str:
    return "absent" if value is _MISSING else str(value)
