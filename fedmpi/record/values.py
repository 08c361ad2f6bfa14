"""From what a caller hands over to complete, checked rows: names, shapes, dtypes, sums and defaults."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedmpi.errors import SchemaError
from fedmpi.record import schema
from fedmpi.record.messages import check_messages, round_traffic, traffic

Values = Mapping[str, Any]
Rows = dict[str, npt.NDArray[Any]]

_MEANS: Final = {
    "mean_density": "density",
    "mean_loss": "loss_total",
    "mean_map": "map",
    "mean_rank1": "rank1",
    "mean_rank5": "rank5",
    "mean_rank10": "rank10",
    "global_map": "global_map",
    "global_rank1": "global_rank1",
}
_BY_WRITER: Final = {"messages"}


def baseline_rows(values: Values, clients: int) -> Rows:
    """Return the checked values of ``/baseline`` by full name; SchemaError names what does not fit."""
    return _checked("baseline", values, {"client": clients})


def round_rows(
    round: int,
    scalars: Values,
    clients: Values,
    layers: Values,
    messages: npt.NDArray[np.void],
    *,
    names: tuple[Sequence[str], Sequence[str]],
) -> Rows:
    """Return one round's rows by full name, with traffic sums and means filled in; absent defaults stay absent.

    Parameters
    ----------
    scalars, clients, layers
        Variables of ``/rounds``, ``/clients`` [C] and ``/layers`` [C, L]. Byte variables are summed from ``messages``;
        where the caller gives one too, it must agree. Means over clients are taken where the caller gives none.
    messages
        The round's messages, MESSAGE_DTYPE[n].
    names
        Client names and layer names.

    Raises
    ------
    SchemaError
        For an unknown, missing, ill-shaped, contradicting or not convertible variable, by name.
    """
    sizes = {"client": len(names[0]), "layer": len(names[1])}
    check_messages(messages, round, sizes["client"])
    sums = traffic(messages, sizes["client"])
    rows = _checked("clients", _agreed("clients", clients, sums), sizes)
    scalars = _agreed("rounds", scalars, round_traffic(sums))
    rows |= _checked("rounds", {**_means(rows), **scalars, "messages": len(messages)}, sizes)
    if sizes["layer"] or layers:
        rows |= _checked("layers", layers, sizes)
    numbers = {f"{group}/round": np.asarray(round, np.int64) for group in ("rounds", "clients", "layers")}
    return rows | numbers


def _agreed(group: str, given: Values, sums: Values) -> dict[str, Any]:
    """Join what was given with what the messages sum to; SchemaError where they differ."""
    for name in given.keys() & sums.keys():
        if not np.array_equal(np.asarray(given[name]), sums[name]):
            raise SchemaError(f"{group}/{name} is {given[name]}, but the messages sum to {sums[name]}")
    for name in given.keys() & (_BY_WRITER if group == "rounds" else set()):
        raise SchemaError(f"{group}/{name} is set by the writer; leave it out")
    return {**given, **sums}


def _means(rows: Rows) -> dict[str, float]:
    """Mean over the clients that have a value; NaN where none has."""
    means = {}
    for name, source in _MEANS.items():
        values = rows.get(f"clients/{source}", np.array(np.nan))
        known = values[~np.isnan(values)]
        means[name] = float(known.mean()) if known.size else float("nan")
    return means


def _checked(group: str, given: Values, sizes: Mapping[str, int]) -> Rows:
    """Check one group's values against the schema and convert them to the dtypes on disk."""
    known = schema.variables(group)
    if unknown := sorted(given.keys() - known.keys()):
        raise SchemaError(f"/{group} has no variable {', '.join(unknown)}; it has {', '.join(known)}")
    missing = [v.name for v in known.values() if v.default is None and v.name not in given]
    if missing:
        raise SchemaError(f"/{group} needs {', '.join(missing)} in every round")
    return {f"{group}/{name}": _converted(group, known[name], value, sizes) for name, value in given.items()}


def _converted(group: str, variable: schema.Variable, value: object, sizes: Mapping[str, int]) -> npt.NDArray[Any]:
    """Return ``value`` in the variable's shape and dtype; SchemaError where it would not survive unchanged."""
    name = f"{group}/{variable.name}"
    shape = tuple(sizes[dim] for dim in variable.dims if dim != "round")
    try:
        array = np.asarray(value)
        floats = np.asarray(array, np.float64)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{name} must be numbers, not {value!r}") from error
    if array.shape != shape:
        raise SchemaError(f"{name} has shape {array.shape}, not {shape} {variable.dims[-len(shape) or None :]}")
    if variable.dtype.startswith("i") and array.dtype.kind not in "iub":
        raise SchemaError(f"{name} must be integers ({variable.dtype}), not {array.dtype}")
    if variable.dtype.startswith("i") and array.size and not np.can_cast(array.dtype, variable.on_disk):
        limits = np.iinfo(variable.dtype)
        if floats.min() < limits.min or floats.max() > limits.max:
            raise SchemaError(f"{name} does not fit {variable.dtype}: {floats.min():.0f} to {floats.max():.0f}")
    if variable.flags and not np.isin(array, list(variable.flags)).all():
        raise SchemaError(f"{name} is {array.tolist()}, its codes are {dict(variable.flags)}")
    return array.astype(variable.on_disk)
