"""A run file written anew, packed or with fewer rounds; the new file takes the old one's place at once."""

from pathlib import Path
from typing import Final

import h5py
import numpy as np
import numpy.typing as npt

from fedmpi.errors import SchemaError
from fedmpi.record import layout, schema
from fedmpi.record.access import names, open_checked, progress, version
from fedmpi.record.messages import MESSAGE_DTYPE, empty_messages
from fedmpi.record.storage import replacing
from fedmpi.record.texts import ROOT_TEXTS, Provenance, root_text, set_root_text, write_provenance

_COPY_BYTES: Final = 16 << 20


def pack(path: Path) -> None:
    """Bring a run file into packed form: cut to its committed rounds, compressed, with checksums."""
    with open_checked(path) as old, replacing(path) as scratch:
        rounds, messages = progress(old)
        with layout.build(scratch, *names(old), layout.packed_form(rounds, messages)) as new:
            _copy(old, new, rounds, messages)


def restart(path: Path, rounds: int, expected: int | None, provenance: Provenance | None) -> None:
    """Bring a run file into working form, cut to its first ``rounds`` rounds, with status ``running``.

    ``expected`` rounds are prepared for; ``provenance`` is noted as that of a resuming process.

    Raises
    ------
    SchemaError
        If it is no run file that can be continued, or holds fewer rounds.
    """
    with open_checked(path) as old:
        _check_resumable(old, path, rounds)
        rounds, messages = progress(old, rounds)
        clients, layers = names(old)
        form = layout.Form.working(len(clients), len(layers), expected)
        with replacing(path) as scratch, layout.build(scratch, clients, layers, form) as new:
            _copy(old, new, rounds, messages)
            for name, text in {"status": "running", "error": "", "stopped": ""}.items():
                set_root_text(new, name, text)
            _note_resume(new["provenance"], rounds, provenance)


def _check_resumable(file: h5py.File, path: Path, rounds: int) -> None:
    """Refuse a file that a rewrite would take something from, or that lacks rounds."""
    if version(file) > schema.SCHEMA_VERSION:
        raise SchemaError(f"{path}: schema {version(file)} is newer than {schema.SCHEMA_VERSION}; upgrade to resume it")
    held, _ = progress(file)
    if not 0 <= rounds <= held:
        raise SchemaError(f"{path}: holds {held} committed rounds and cannot be resumed after {rounds}")


def _note_resume(group: h5py.Group, rounds: int, provenance: Provenance | None) -> None:
    """Keep the provenance of a resuming process beside the first one's."""
    number = 1 + sum(isinstance(item, h5py.Group) for item in group.values())
    write_provenance(group.create_group(f"resume_{number}"), {**(provenance or {}), "after_rounds": str(rounds)})


def _copy(old: h5py.File, new: h5py.File, rounds: int, messages: int) -> None:
    """Copy everything that is committed; the marker last."""
    old.copy("provenance", new)
    for name in schema.variables("baseline"):
        new["baseline"][name][...] = old["baseline"][name][...]
    sources = layout.per_round(old)
    for name, target in layout.per_round(new).items():
        if name in sources:
            _copy_rows(sources[name], target, rounds)
        else:  # a variable that came with a later minor version
            target.resize(rounds, axis=0)
    _copy_rows(old[layout.TABLE], new[layout.TABLE], messages)
    for name in ROOT_TEXTS:
        set_root_text(new, name, root_text(old, name))
    new.attrs.modify(layout.COMMITTED, rounds)


def _copy_rows(source: h5py.Dataset, target: h5py.Dataset, rows: int) -> None:
    """Copy the first ``rows`` rows in blocks of whole target chunks, of a few MB."""
    target.resize(rows, axis=0)
    chunk = target.chunks[0]
    row_bytes = max(1, target.dtype.itemsize * int(target.size // max(rows, 1)))
    block = max(1, _COPY_BYTES // row_bytes // chunk) * chunk
    for start in range(0, rows, block):
        target[start : start + block] = _upgraded(source[start : min(start + block, rows)])


def _upgraded(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return message rows with the columns that came with later minor versions; other arrays as they are."""
    if rows.dtype.names is None or rows.dtype == MESSAGE_DTYPE:
        return rows
    table = empty_messages(len(rows))
    for name in rows.dtype.names:
        table[name] = rows[name]
    return table
