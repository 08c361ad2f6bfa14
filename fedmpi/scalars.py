"""The numbers of a run file for other tools: CSV, Parquet, TensorBoard; made afterwards, from the file alone."""

import csv
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from fedmpi.event_file import EventWriter
from fedmpi.record import Run

Columns = dict[str, npt.NDArray[Any]]


def columns(run: Run, group: str) -> Columns:
    """Return a group as columns of equal length, coordinates (round, client, layer) first.

    Counts that were not measured become NaN, as floats are; client names stand for client numbers, and codes of CRR
    decisions stay codes. SchemaError if the run has no such group (``layers`` where layers were not recorded).
    """
    if group == "messages":
        return _messages(run)
    dims = _dims(run, group)
    lengths = [len(run[f"{group}/{dim}"]) for dim in dims]
    grid = np.indices(lengths).reshape(len(dims), -1)
    result: Columns = {dim: run[f"{group}/{dim}"][places] for dim, places in zip(dims, grid, strict=True)}
    for name in variables(run, group):
        result[name] = _measured(run, f"{group}/{name}").reshape(-1)
    return result


def _dims(run: Run, group: str) -> tuple[str, ...]:
    """Return the dimensions of a group's variables."""
    names = variables(run, group)
    return run.dims(f"{group}/{names[0]}") if names else run.dims(f"{group}/{group}")


def variables(run: Run, group: str) -> list[str]:
    """Return the names of a group's variables, without coordinates."""
    members = [name.split("/")[1] for name in run.names() if name.startswith(f"{group}/")]
    return [name for name in members if name not in {"round", "client", "layer"}]


def _measured(run: Run, name: str) -> npt.NDArray[Any]:
    """Return a variable with NaN where a count was not measured; whole numbers where all were."""
    values, fill = run[name], run.attributes(name).get("_FillValue")
    if fill is None or values.dtype.kind == "f" or not (values == fill).any():
        return values
    return np.where(values == fill, np.nan, values)


def _messages(run: Run) -> Columns:
    table = run.messages
    result: Columns = {name: table[name] for name in table.dtype.names or ()}
    result["client"] = np.array(run.clients, object)[table["client"]]
    for name in {"direction", "mask_mode", "coding"} & set(result):
        result[name] = table[name].astype(str).astype(object)
    return result


def units(run: Run, group: str) -> dict[str, str]:
    """Return the unit of every variable of a group; messages have theirs in the table's own attributes."""
    return {name: str(run.attributes(f"{group}/{name}").get("units", "1")) for name in variables(run, group)}


def write_csv(run: Run, group: str, folder: Path) -> list[Path]:
    """Write a group as CSV; empty cells where nothing was measured, floats with all their digits."""
    path, table = folder / f"{group}.csv", columns(run, group)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        cells = ([_cell(value) for value in column.tolist()] for column in table.values())
        writer.writerows(zip(*cells, strict=True))
    return [path]


def _cell(value: object) -> object:
    return "" if isinstance(value, float) and math.isnan(value) else value


def write_parquet(run: Run, group: str, folder: Path) -> list[Path]:
    """Write a group as Parquet, units in the columns' metadata; ImportError if pyarrow is not installed."""
    arrow, parquet = _library("pyarrow"), _library("pyarrow.parquet")
    table = columns(run, group)
    known = {} if group == "messages" else units(run, group)
    arrays = {name: arrow.array(column, from_pandas=column.dtype.kind == "f") for name, column in table.items()}
    fields = [
        arrow.field(name, array.type, metadata={"units": known[name]} if name in known else None)
        for name, array in arrays.items()
    ]
    path = folder / f"{group}.parquet"
    parquet.write_table(arrow.Table.from_arrays(list(arrays.values()), schema=arrow.schema(fields)), path)
    return [path]


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            "Parquet needs pyarrow, which is not installed; it comes with: pip install 'fedmpi[parquet]'", name=name
        ) from error


def write_tensorboard(run: Run, group: str, folder: Path) -> list[Path]:
    """Write ``rounds`` as one TensorBoard run, ``clients`` as one run per client; the other groups have no steps.

    A step is a number of finished rounds: 0 is the untrained model. Times are the ends of the rounds. Tags of one kind
    (``bytes``, ``seconds``, ``loss``, ``crr``) share a section.
    """
    if group == "rounds":
        names = [name for name in variables(run, "rounds") if name not in {"started", "messages"}]
        values = {tag(name): run[f"rounds/{name}"] for name in names}
        before = {tag(f"mean_{name}"): _mean(run[f"baseline/{name}"]) for name in variables(run, "baseline")}
        return [_write_events(run, folder / "server", before, values)]
    if group == "clients":
        names = variables(run, "clients")
        table = {tag(name): _measured(run, f"clients/{name}") for name in names}
        first = {tag(name): run[f"baseline/{name}"] for name in variables(run, "baseline")}
        return [
            _write_events(
                run,
                folder / _safe(client),
                {name: float(values[k]) for name, values in first.items()},
                {name: values[:, k] for name, values in table.items()},
            )
            for k, client in enumerate(run.clients)
        ]
    return []


def _write_events(run: Run, folder: Path, before: Mapping[str, float], values: Mapping[str, Any]) -> Path:
    started = run["rounds/started"]
    ends = started + run["rounds/seconds"]
    begin = float(started[0]) if run.rounds else 0.0
    with EventWriter(folder, begin) as writer:
        writer.add(begin, 0, _known(before))
        for t in range(run.rounds):
            writer.add(float(ends[t]), t + 1, _known({name: float(column[t]) for name, column in values.items()}))
    return writer.path


def _known(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Return the mean of what was measured; NaN when nothing was."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def tag(name: str) -> str:
    """Return the tag of a variable: ``seconds_train`` is ``seconds/train``, so that one section holds all seconds."""
    kind, sign, rest = name.partition("_")
    return f"{kind}/{rest}" if sign and kind in {"bytes", "seconds", "loss", "crr"} else name


def _safe(name: str) -> str:
    """Return a client's name as a folder's: no two names share one, and none leads out of the output folder."""
    return "client_" + quote(name, safe=" ")


def described(run: Run, groups: Sequence[str]) -> Iterator[list[str]]:
    """Yield group, name, unit and meaning of every variable, for a table beside the CSV files."""
    for group in groups:
        for name in variables(run, group) if group != "messages" else []:
            attributes = run.attributes(f"{group}/{name}")
            yield [group, name, str(attributes.get("units", "1")), str(attributes.get("long_name", ""))]
