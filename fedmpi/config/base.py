"""What every section of a run description is made of: strict scalar types, documented keys, checks across keys."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Problem = tuple[str, str]
"""A key relative to its section, and what is wrong with its value."""

_T = TypeVar("_T")
_SWITCH_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _switch(value: object) -> object:
    """Accept the words that people write for a switch; anything else but a bool is refused (``1`` is no switch)."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _SWITCH_WORDS:
        return _SWITCH_WORDS[value.lower()]
    raise PydanticCustomError("switch", "must be true or false")


def _path(value: object) -> object:
    """Expand ``~`` and refuse what can never be a path."""
    if value is None or isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise PydanticCustomError("path", "must be a path or null")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise PydanticCustomError("path", "names a home directory that does not exist") from error


Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
OptionalNumber = Annotated[float | None, Strict()]
Switch = Annotated[bool, BeforeValidator(_switch)]
Text = Annotated[str, Strict()]
OptionalPath = Annotated[Path | None, BeforeValidator(_path)]


def key(
    default: _T,
    description: str,
    *,
    source: str,
    unit: str = "",
    type_text: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    output_only: bool = False,
    may_change: bool = False,
    but_not: tuple[str, ...] = (),
) -> _T:
    """Declare one configuration key.

    Parameters
    ----------
    default
        Value when neither a file nor ``--set`` gives one.
    description
        Meaning and special values, as whole sentences for the reference page.
    source
        Where the default comes from: ``FedCAPR code``, ``FedKLPR v1``, ``[choice] why``, or ``fedmpi`` for what has no
        counterpart in a paper.
    unit
        Unit of the value; empty when it has none.
    type_text
        What the reference page says as type, where the annotation alone would not tell.
    ge, gt, le, lt
        Bounds.
    output_only
        True when the key cannot change results or what ranks exchange; such keys do not enter the digest.
    may_change
        True when all ranks must agree on the key, but a resumed run may have another value than it began with, to the
        same results.
    but_not
        Values from and to which it may not, since they change results.
    """
    extra: JsonDict = {
        "source": source,
        "unit": unit,
        "type_text": type_text,
        "bounds": bounds_text(ge=ge, gt=gt, le=le, lt=lt),
        "output_only": output_only,
        "may_change": may_change,
        "but_not": list(but_not),
    }
    # A runtime FieldInfo, which pydantic replaces by the default; typed as the default so that mypy checks it.
    field: _T = Field(
        default,
        description=description,
        ge=ge,
        gt=gt,
        le=le,
        lt=lt,
        json_schema_extra=extra,
    )
    return field


def bounds_text(
    *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None
) -> str:
    """Return bounds in words: ``between 0 and 1``, ``at least 1``, ``greater than 0 and less than 1``, or nothing."""
    if ge is not None and le is not None:
        return f"between {_plain(ge)} and {_plain(le)}"
    words = {"at least": ge, "greater than": gt, "at most": le, "less than": lt}
    return " and ".join(f"{word} {_plain(bound)}" for word, bound in words.items() if bound is not None)


def _plain(bound: float) -> str:
    """Write 1.0 as 1: a bound reads the same for whole numbers and others."""
    return str(int(bound)) if float(bound).is_integer() else str(bound)


def note(field: FieldInfo, name: str) -> str:
    """Return one of the texts that ``key`` was given: ``source``, ``unit``, ``type_text`` or ``bounds``."""
    extra = field.json_schema_extra
    return str(extra[name]) if isinstance(extra, dict) else ""


def is_output_only(field: FieldInfo) -> bool:
    """Tell whether a key is left out of the digest."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra["output_only"])


def may_change(field: FieldInfo, values: Iterable[object] = ()) -> bool:
    """Tell whether a resumed run may have another value than the run began with; ``values`` are both, if known."""
    extra = field.json_schema_extra
    if is_output_only(field) or not isinstance(extra, dict) or not extra["may_change"]:
        return is_output_only(field)
    fixed = extra["but_not"]
    return not (isinstance(fixed, list) and any(value in fixed for value in values))


class Section(BaseModel):
    """A frozen group of keys that refuses unknown ones and values that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong across the keys of this section; each key by itself is already valid."""
        return iter(())

    @model_validator(mode="after")
    def _refuse_problems(self) -> Self:
        found = list(self.problems())
        if found:
            text = "; ".join(f"{name}: {what}" for name, what in found)
            raise PydanticCustomError("problems", "{text}", {"text": text, "found": found})
        return self
