"""Room for what a rank holds of many clients: in memory, or in files of the node's disk that are mapped into it.

Between rounds a client leaves its masks, perhaps a model of its own and what it received last; within a round each
participant has a received model and an update. Where all that does not fit, a limit lets only so much of it be in
memory at a time, and what was used longest ago gives way. The bits are the same with any limit.
"""

import mmap
import os
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import RunConfig
from fedmpi.errors import ConfigError, StorageError
from fedmpi.sparse import Mask

SMALL = 1 << 12
"""Arrays of fewer bytes always stay in memory: a file for each would not be worth it."""
_Array = TypeVar("_Array", bound=NDArray[Any])


class Piece(mmap.mmap):
    """The file of one array, mapped into memory.

    Attributes
    ----------
    checksum
        CRC-32 of the content once that is final, else None.
    away
        Whether its pages have been given back since the last use, so that the next one reads the file.
    """

    checksum: int | None = None
    away: bool = False


class Spill:
    """Makes arrays, and keeps those that are in use within a limit. *No method is collective.*

    A file has no name: it is gone when its array is, or the process, however that ends.

    Parameters
    ----------
    limit
        Bytes that the arrays may take in memory; 0 = no limit, and no files. One array in use may be larger.
    folder
        Where the files lie; on the node, not on the network.
    """

    def __init__(self, limit: int = 0, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder or Path(tempfile.gettempdir())
        self._alive: weakref.WeakValueDictionary[int, Piece] = weakref.WeakValueDictionary()
        self._present: dict[int, int] = {}  # sizes, those used longest ago first
        if limit:
            _allow_many_files()

    @classmethod
    def of(cls, config: RunConfig) -> "Spill":
        """Return the room that a configuration asks for; ``ConfigError`` when its folder cannot be written."""
        federation = config.federation
        folder = Path(federation.state_dir).expanduser() if federation.state_dir is not None else None
        spill = cls(int(1e6 * federation.state_memory_mb), folder)
        if spill.limit and not (spill.folder.is_dir() and os.access(spill.folder, os.W_OK)):
            message = f"federation.state_dir: {spill.folder} is no folder that can be written"
            raise ConfigError(message)
        return spill

    def empty(self, size: int) -> NDArray[np.float32]:
        """Return ``float32[size]`` to be filled; call `keep` when its content is final."""
        if not self.limit or 4 * size < SMALL:
            return np.empty(size, np.float32)
        return np.ndarray(size, np.float32, self._map(4 * size))

    def keep(self, array: _Array) -> _Array:
        """Return the same array, to be read only: itself where it may stay, else a copy in a file."""
        piece = piece_of(array)
        if not self.limit or array.nbytes < SMALL or (piece is not None and piece.checksum is not None):
            return array
        if piece is None:
            piece = self._map(array.nbytes)
            moved = np.ndarray(array.shape, array.dtype, piece)
            moved[...] = array
            array = moved  # type: ignore[assignment]
        piece.checksum = zlib.crc32(piece)
        return array

    def keep_mask(self, mask: Mask) -> Mask:
        """Return the same mask, its words kept as by `keep`."""
        words = self.keep(mask.words)
        return mask if words is mask.words else Mask(words, mask.size)

    def use(self, *arrays: object) -> None:
        """Say that these are needed now; others may have to give way.

        Raises
        ------
        StorageError
            When a file does not hold any more what was written.
        """
        for piece in filter(None, map(piece_of, arrays)):
            if piece.away and piece.checksum is not None and zlib.crc32(piece) != piece.checksum:
                message = f"a client's state was damaged on disk in {self.folder} (federation.state_dir names another)"
                raise StorageError(message)
            piece.away = False
            self.enter(piece)

    def rest(self) -> None:
        """Say that nothing is needed for now."""
        for piece in list(self._alive.values()):
            self._let_go(piece)

    def enter(self, piece: Piece) -> None:
        """Make ``piece`` the last used one, and let go of the first ones that are over the limit."""
        self._present.pop(id(piece), None)
        self._present[id(piece)] = len(piece)
        total = sum(self._present.values())
        for key, size in list(self._present.items())[:-1]:
            if total <= self.limit:
                return
            self._let_go(self._alive[key])
            total -= size

    def _let_go(self, piece: Piece) -> None:
        piece.madvise(mmap.MADV_DONTNEED)  # the pages are the file's: this forgets them, not their content
        piece.away = True
        self._present.pop(id(piece), None)

    def _map(self, size: int) -> Piece:
        """Return a new file of ``size`` bytes that nobody else can see, with its room on the disk reserved."""
        try:
            with tempfile.TemporaryFile(prefix="fedmpi-", dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk would otherwise end the process by SIGBUS
                piece = Piece(file.fileno(), size)
        except OSError as error:
            message = f"federation.state_dir: {self.folder}: {error.strerror or error}; {size / 1e6:.1f} MB are needed"
            raise StorageError(message) from error
        self._alive[id(piece)] = piece
        weakref.finalize(piece, self._present.pop, id(piece), None).atexit = False
        self.enter(piece)
        return piece


@dataclass(frozen=True)
class Shelf(Mapping[int, _Array]):
    """Arrays by client, of which each counts as used when it is looked at: for work that goes through all in pieces."""

    spill: Spill
    arrays: Mapping[int, _Array]

    def __getitem__(self, client: int) -> _Array:
        array = self.arrays[client]
        piece = piece_of(array)
        if piece is not None:
            self.spill.enter(piece)
        return array

    def __iter__(self) -> Iterator[int]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def _allow_many_files() -> None:
    """Let this process have as many open files as it may: Python keeps one open for each that it maps."""
    import resource  # noqa: PLC0415 - Unix only, as MPI clusters are

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def piece_of(array: object) -> Piece | None:
    """Return the file behind an array or a view of one, None for memory and for what is no array."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, Piece) else None
