"""A run file in working form, open for writing: rows go in behind the last one, the marker after them."""

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import h5py
import numpy as np
import numpy.typing as npt

from fedmpi.record import layout
from fedmpi.record.access import progress
from fedmpi.record.texts import set_root_text
from fedmpi.record.values import Rows

_STRUCTURE_BYTES: Final = 512 << 10
"""Room for what HDF5 adds beside new chunks (their index): under 0.3 MB for all datasets together, once per block."""


class WorkingFile:
    """The open file with its datasets at hand; nothing is buffered between calls."""

    def __init__(self, path: Path) -> None:
        # No chunk cache: each row goes straight to its place, instead of rewriting whole chunks of many rounds.
        self.file = h5py.File(path, "r+", libver=layout.FORMAT, locking=False, rdcc_nbytes=0)
        self._growing = layout.per_round(self.file)
        self._table = self.file[layout.TABLE]
        self.rounds, self.messages = progress(self.file)

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the HDF5 file; harmless when repeated."""
        self.file.close()

    def missing_bytes(self, messages: int) -> int:
        """Return the bytes of new chunks that the next round needs: 0 if it fits into chunks that exist."""
        need = 0
        if self.rounds % self._growing["rounds/round"].chunks[0] == 0:
            need += sum(_chunk_bytes(dataset) for dataset in self._growing.values())
        rows = self._table.chunks[0]
        need += (-(-(self.messages + messages) // rows) - -(-self.messages // rows)) * _chunk_bytes(self._table)
        return need + _STRUCTURE_BYTES if need else 0

    def append(self, rows: Rows, messages: npt.NDArray[np.void]) -> None:
        """Write one round behind the last and, only when that is on disk, the marker."""
        number = self.rounds
        for name, dataset in self._growing.items():
            dataset.resize(number + 1, axis=0)
            if name in rows:  # else its default is there already, from when the chunk was filled
                dataset[number] = rows[name]
        self._table.resize(self.messages + len(messages), axis=0)
        if len(messages):
            self._table[self.messages :] = messages
        self.sync()
        self.file.attrs.modify(layout.COMMITTED, np.int64(number + 1))
        self.sync()
        self.rounds, self.messages = number + 1, self.messages + len(messages)

    def set_baseline(self, rows: Rows) -> None:
        """Write the scores of the untrained model."""
        for name, row in rows.items():
            self.file[name][...] = row
        self.sync()

    def set_texts(self, **texts: str) -> None:
        """Set texts of the root (``status``, ``error``, ``stopped``)."""
        for name, text in texts.items():
            set_root_text(self.file, name, text)
        self.sync()

    def sync(self) -> None:
        """Hand everything to the file system and wait for the disk."""
        self.file.flush()
        os.fsync(self.file.id.get_vfd_handle())


def _chunk_bytes(dataset: h5py.Dataset) -> int:
    """Return the bytes of one chunk on disk."""
    return int(np.prod(dataset.chunks, dtype=np.int64)) * int(dataset.dtype.itemsize)
