"""Opening a run file for reading, and the few facts that writer and reader both take from one."""

import re
from pathlib import Path
from typing import Final

import h5py

from fedmpi.errors import SchemaError
from fedmpi.record import layout, schema

RUN_FILE: Final = "run.h5"


def open_checked(path: Path) -> h5py.File:
    """Open a run file for reading at any moment of its life.

    Raises
    ------
    SchemaError
        If there is no file, if it is not a whole HDF5 file, not a run file, or of a newer major schema version.
    """
    file = _open(path)
    try:
        _check(file, path)
    except BaseException:
        file.close()
        raise
    return file


def _open(path: Path) -> h5py.File:
    """Open as HDF5, with the library's own locking if it can be had.

    A second handle in one process must ask for the same locking as the first: that is none beside our writer, and the
    library's own beside xarray or plain h5py. The writer locks nothing, so neither ever waits.
    """
    try:
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "lock" not in str(error):
                raise
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise SchemaError(f"{path}: no such run file") from None
    except (OSError, RuntimeError) as error:
        raise SchemaError(f"{path}: not a whole HDF5 file ({error})") from error


def _check(file: h5py.File, path: Path) -> None:
    """Refuse what is not a run file of a schema that this version reads."""
    try:
        name = file.attrs.get("schema")
        marked = layout.COMMITTED in file.attrs
    except (OSError, RuntimeError) as error:
        raise SchemaError(f"{path}: damaged ({error})") from error
    if name != schema.SCHEMA_NAME or not marked:
        raise SchemaError(f"{path}: an HDF5 file, but not a run file (schema {name!r}, not {schema.SCHEMA_NAME!r})")
    found, known = version(file), schema.SCHEMA_VERSION
    if found[0] > known[0]:
        raise SchemaError(
            f"{path}: schema {found[0]}.{found[1]}, but this fedmpi reads up to {known[0]}.x; upgrade fedmpi to read it"
        )


def version(file: h5py.File) -> tuple[int, int]:
    """Return the schema version (major, minor); SchemaError if it is none."""
    text = file.attrs.get("schema_version")
    match = re.fullmatch(r"(\d+)\.(\d+)", text) if isinstance(text, str) else None
    if match is None:
        raise SchemaError(f"{file.filename}: schema_version must be MAJOR.MINOR, not {text!r}")
    return int(match[1]), int(match[2])


def progress(file: h5py.File, rounds: int | None = None) -> tuple[int, int]:
    """Return the number of committed rounds (or the given one) and of the messages that belong to them."""
    if rounds is None:
        rounds = int(file.attrs[layout.COMMITTED])
    return rounds, int(file["rounds/messages"][:rounds].sum())


def names(file: h5py.File) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of clients and of layers (none where layers are not recorded)."""
    clients = file["clients/client"].asstr()[...]
    layers = file["layers/layer"].asstr()[...] if "layers" in file else ()
    return tuple(clients), tuple(layers)
