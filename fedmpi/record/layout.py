"""The HDF5 structure of a run file: groups, datasets, dimension scales and attributes, without any measured value.

Two forms share one schema. The *working* form is for a run that goes on: plain chunks of many rounds, allocated
and filled when the first of their rounds is written, so that adding a round inside a chunk alters no HDF5 structure but
the extents. The *packed* form is for a run that has ended: cut to the rounds that exist, compressed (gzip, shuffle) and
with a checksum on every chunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from fedmpi.record import schema
from fedmpi.record.messages import CODINGS, DIRECTIONS, MASK_MODES, MESSAGE_COLUMNS, MESSAGE_DTYPE
from fedmpi.record.texts import TEXT, build_root_texts

COMMITTED: Final = "committed_rounds"
TABLE: Final = "messages/table"
FORMAT: Final = ("earliest", "v110")
"""Readable by the HDF5 1.10 tools of today's distributions, with headers that carry no checksum (see the writer)."""

_BLOCK_ROUNDS: Final = 256
_BLOCK_BYTES: Final = 128 << 20
_PACKED_CHUNK_BYTES: Final = 512 << 10
_MESSAGES_PER_CLIENT: Final = 3


@dataclass(frozen=True, slots=True)
class Form:
    """How datasets are stored: chunk lengths in rounds and in message rows, and whether packed."""

    rounds: int
    rows: int
    packed: bool

    @classmethod
    def working(cls, clients: int, layers: int, rounds: int | None) -> "Form":
        """Choose chunks of many rounds: all of them if few or small enough (``rounds`` expected, None = unknown)."""
        block = min(rounds or _BLOCK_ROUNDS, _BLOCK_ROUNDS, _BLOCK_BYTES // round_bytes(clients, layers))
        block = max(block, 1)
        return cls(block, max(block * clients * _MESSAGES_PER_CLIENT, 64), packed=False)

    def chunk(self, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, ...]:
        """Return the chunk of a (round, ...) variable whose other dimensions are ``shape``."""
        if not self.packed:
            return (self.rounds, *shape)
        row = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return (max(1, min(self.rounds, _PACKED_CHUNK_BYTES // row)), *shape)


def packed_form(rounds: int, rows: int) -> Form:
    """Return the packed form of a run of ``rounds`` rounds and ``rows`` messages."""
    return Form(max(rounds, 1), max(1, min(rows, _PACKED_CHUNK_BYTES // MESSAGE_DTYPE.itemsize)), packed=True)


def round_bytes(clients: int, layers: int) -> int:
    """Return the bytes that one round takes in all per-round variables, without the messages."""
    sizes = {"client": clients, "layer": layers}
    return 8 * 3 + sum(
        v.on_disk.itemsize * int(np.prod([sizes[dim] for dim in v.dims[1:]], dtype=np.int64))
        for variables in schema.GROUPS.values()
        for v in variables
        if v.dims[0] == "round"
    )


def build(path: Path, clients: Sequence[str], layers: Sequence[str], form: Form) -> h5py.File:
    """Create ``path`` (exclusively) with every dataset at zero rounds and return it, open for writing."""
    file = h5py.File(path, "x", libver=FORMAT, locking=False, rdcc_nbytes=0)
    major, minor = schema.SCHEMA_VERSION
    file.attrs.update({"schema": schema.SCHEMA_NAME, "schema_version": f"{major}.{minor}", "NX_class": "NXroot"})
    file.attrs.update({"default": "clients", COMMITTED: np.int64(0)})
    build_root_texts(file)
    names = {"client": clients, "layer": layers}
    for group, variables in schema.GROUPS.items():
        if group != "layers" or layers:
            _build_group(file, group, variables, names, form)
    _build_messages(file, form)
    return file


def _build_group(
    file: h5py.File, name: str, variables: Sequence[schema.Variable], names: Mapping[str, Sequence[str]], form: Form
) -> None:
    """Create one group with its own dimension scales, so that it opens with labels by itself."""
    group = file.create_group(name)
    dims = max((variable.dims for variable in variables), key=len)
    group.attrs.update({"NX_class": "NXdata", "signal": schema.SIGNALS[name], "axes": list(dims)})
    for dim in dims:
        _build_scale(group, dim, names.get(dim), form)
    for variable in variables:
        dataset = _build_variable(group, variable, {dim: len(names[dim]) for dim in dims if dim in names}, form)
        for axis, dim in enumerate(variable.dims):
            dataset.dims[axis].attach_scale(group[dim])


def _build_scale(group: h5py.Group, dim: str, labels: Sequence[str] | None, form: Form) -> None:
    """Create the coordinate of one dimension: round numbers, or the names of clients or layers."""
    if labels is None:
        scale = _growing(group, dim, (), np.dtype("<i8"), fill=-1, form=form)
        words = {"units": "1", "long_name": "round number, from 0"}
    else:
        scale = group.create_dataset(dim, data=list(labels), dtype=TEXT)
        words = {"units": "1", "long_name": f"{dim} name"}
    scale.attrs.update(words)
    scale.make_scale(dim)


def _build_variable(group: h5py.Group, variable: schema.Variable, sizes: Mapping[str, int], form: Form) -> h5py.Dataset:
    """Create one variable with its attributes."""
    shape = tuple(sizes[dim] for dim in variable.dims if dim != "round")
    if variable.dims[0] == "round":
        dataset = _growing(group, variable.name, shape, variable.on_disk, fill=variable.fill, form=form)
    else:
        dataset = group.create_dataset(variable.name, data=np.full(shape, variable.fill, variable.on_disk))
    dataset.attrs.update({"units": variable.unit, "long_name": variable.long_name})
    if variable.default == schema.NO_COUNT:
        dataset.attrs["_FillValue"] = variable.on_disk.type(schema.NO_COUNT)
    if variable.flags:
        dataset.attrs["flag_values"] = np.array(list(variable.flags), variable.on_disk)
        dataset.attrs["flag_meanings"] = " ".join(variable.flags.values())
    return dataset


def _growing(
    group: h5py.Group, name: str, shape: Sequence[int], dtype: np.dtype[Any], *, fill: float, form: Form
) -> h5py.Dataset:
    """Create a dataset of zero rounds that can grow; in working form its chunks are allocated and filled at once."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_INCR if form.packed else h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
    chunk = (form.rows,) if dtype == MESSAGE_DTYPE else form.chunk(shape, dtype)
    filters = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True} if form.packed else {}
    fillvalue = None if dtype == MESSAGE_DTYPE else fill
    return group.create_dataset(
        name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunk, fillvalue=fillvalue, dcpl=plist, **filters
    )


def _build_messages(file: h5py.File, form: Form) -> None:
    """Create the table of messages, alone in its group, with unit and meaning of each column as attributes."""
    group = file.create_group("messages")
    group.attrs["NX_class"] = "NXcollection"
    table = _growing(group, "table", (), MESSAGE_DTYPE, fill=0, form=form)
    table.attrs.update({"units": "see unit_*", "long_name": "one row per message handed to MPI"})
    for name, (_, unit, text) in MESSAGE_COLUMNS.items():
        table.attrs.update({f"unit_{name}": unit, f"about_{name}": text})
    table.attrs["directions"] = "; ".join(f"{name}: {text}" for name, text in DIRECTIONS.items())
    table.attrs["mask_modes"] = "; ".join(f"{name}: {text}" for name, text in MASK_MODES.items())
    table.attrs["codings"] = "; ".join(f"{name}: {text}" for name, text in CODINGS.items())


def per_round(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return every dataset that grows by one row per round, by full name, round scales included."""
    datasets = {
        f"{group}/{variable.name}": file[group][variable.name]
        for group, variables in schema.GROUPS.items()
        for variable in variables
        if group in file and variable.dims[0] == "round" and variable.name in file[group]
    }
    return datasets | {
        f"{group}/round": file[group]["round"] for group in ("rounds", "clients", "layers") if group in file
    }
