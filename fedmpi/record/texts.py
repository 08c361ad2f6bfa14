"""Texts in a run file: the root's, of fixed size, that change while it grows, and those of the provenance."""

from collections.abc import Mapping, Sequence
from typing import Final

import h5py
import numpy as np

from fedmpi.errors import SchemaError

TEXT: Final = h5py.string_dtype("utf-8")
"""Variable-length UTF-8, for all that is written once."""

ROOT_TEXTS: Final[Mapping[str, int]] = {"status": 16, "error": 2048, "created": 32, "stopped": 32}
"""Texts of the root, with a fixed size in bytes, so that setting one needs no disk space and alters no structure."""

Provenance = Mapping[str, str | Sequence[str]]
"""Texts, or lists of texts, by name."""


def build_root_texts(file: h5py.File) -> None:
    """Create the root's texts, empty, null-terminated (h5py alone would pad them, and h5dump print the padding)."""
    for name, size in ROOT_TEXTS.items():
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(size)
        kind.set_cset(h5py.h5t.CSET_UTF8)
        h5py.h5a.create(file.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
        set_root_text(file, name, "")


def set_root_text(file: h5py.File, name: str, text: str) -> None:
    """Set one of the root's texts, as one line of UTF-8, cut between characters where it is too long."""
    size = ROOT_TEXTS[name]
    line = " ".join(text.split()).encode(errors="replace")[: size - 1].decode(errors="ignore")
    file.attrs.modify(name, np.array(line.encode(), h5py.string_dtype("utf-8", size)))


def root_text(file: h5py.File, name: str) -> str:
    """Return one of the root's texts."""
    value = file.attrs[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def write_provenance(group: h5py.Group, provenance: Provenance) -> None:
    """Store each item as a dataset of text: a scalar, or a list; SchemaError for anything that is not text."""
    group.attrs["NX_class"] = "NXcollection"
    for name, value in provenance.items():
        items = [value] if isinstance(value, str) else list(value)
        if not all(isinstance(item, str) for item in items):
            raise SchemaError(f"provenance {name!r} must be a text or a list of texts, not {value!r}")
        data = value if isinstance(value, str) else np.array(items, dtype=object)
        dataset = group.create_dataset(name, data=data, dtype=TEXT)
        dataset.attrs.update({"units": "1", "long_name": name.replace("_", " ")})


def read_provenance(group: h5py.Group) -> dict[str, str | list[str]]:
    """Return the texts of one provenance group, without those of resumes below it."""
    items = {name: item.asstr()[()] for name, item in group.items() if isinstance(item, h5py.Dataset)}
    return {name: value if isinstance(value, str) else list(value) for name, value in items.items()}
