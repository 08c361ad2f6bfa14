"""A run as xarray datasets and pandas frames; these libraries are imported only when asked for."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fedmpi.errors import SchemaError

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, import-not-found, unused-ignore]
    import xarray as xr  # type: ignore[import-not-found, unused-ignore]

COORDINATES = ("round", "client", "layer")


class Source(Protocol):
    """What is needed of a run."""

    clients: tuple[str, ...]

    def names(self) -> list[str]:
        """Return the full names of all variables."""
        ...

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return one of them."""
        ...

    def attributes(self, name: str) -> dict[str, Any]:
        """Return its units and meaning."""
        ...

    def dims(self, name: str) -> tuple[str, ...]:
        """Return its dimensions."""
        ...


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is not installed; it comes with: pip install 'fedmpi[analysis]'", name=name
        ) from error


def dataset(run: Source, group: str) -> "xr.Dataset":
    """Return a group with its coordinates and attributes; counts that were not measured become NaN, as in floats."""
    xarray = _library("xarray")
    members = [name for name in run.names() if name.startswith(f"{group}/")]
    if not members or group == "messages":
        groups = sorted({name.split("/")[0] for name in run.names()} - {"messages"})
        raise SchemaError(f"no group of arrays {group!r}; there are {', '.join(groups)} (and messages as a table)")
    parts = {name.split("/")[1]: _labelled(run, name) for name in members}
    coordinates = {name: parts.pop(name) for name in COORDINATES if name in parts}
    built: xr.Dataset = xarray.Dataset(parts, coordinates)
    return built


def _labelled(run: Source, name: str) -> tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]:
    """Return dimensions, values and attributes of one variable."""
    values, attributes = run.array(name), run.attributes(name)
    if "_FillValue" in attributes:
        values = np.where(values == attributes.pop("_FillValue"), np.nan, values)
    return run.dims(name), values, attributes


def table(run: Source, group: str) -> "pd.DataFrame":
    """Return a group as a frame indexed by its dimensions."""
    _library("pandas")
    frame: pd.DataFrame = dataset(run, group).to_dataframe()
    return frame


def messages(run: Source) -> "pd.DataFrame":
    """Return the messages with client names, directions and mask modes as categories."""
    pandas = _library("pandas")
    rows = run.array("messages/table")
    columns = {name: rows[name] for name in rows.dtype.names or ()}
    columns["client"] = pandas.Categorical.from_codes(rows["client"], list(run.clients))
    for name in {"direction", "mask_mode", "coding"} & set(columns):
        columns[name] = pandas.Categorical(rows[name].astype(str))
    frame: pd.DataFrame = pandas.DataFrame(columns)
    return frame
