"""Checkpoints on disk: named arrays of one moment of a run, whole or not at all, verified when they are read.

A checkpoint is one file in safetensors form, ``round-<rounds>.<digest>.checkpoint``; ``digest`` is the beginning of the
sha256 of its content. So a single rename makes it appear, complete with its checksum, and any flipped, missing or
additional byte is found before anything is used.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file

from fedmpi.errors import SchemaError
from fedmpi.record.storage import record_errors, sync_folder

FORMAT: Final = "1"
"""Version of what the arrays mean; a reader refuses any other."""
_NAME: Final = re.compile(r"round-(\d{6,})\.([0-9a-f]{32})\.checkpoint")
_SCRATCH: Final = ".round-"
_TYPES: Final = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8"}
_BLOCK: Final = 1 << 20

Arrays = Mapping[str, NDArray[Any]]


class CheckpointError(SchemaError):
    """A checkpoint is damaged or not of this format; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: how many rounds are done, arrays by name, texts by name."""

    rounds: int
    arrays: Arrays
    facts: Mapping[str, str]


def write(folder: Path, rounds: int, arrays: Arrays, facts: Mapping[str, str], *, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest ``keep``; return its path. *Not collective*; server only.

    Parameters
    ----------
    folder
        Made where it does not exist.
    rounds
        Number of rounds that are done.
    arrays
        float32, float64, int64 or uint8; streamed to disk one by one, without a copy.
    facts
        Texts; ``format`` and ``rounds`` are added.

    Raises
    ------
    RecordError
        When it cannot be written, for example because the disk is full; the older ones stay.
    """
    with record_errors(folder / f"round-{rounds:06d}", rounds):
        folder.mkdir(exist_ok=True)
        _sweep(folder)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=_SCRATCH)
        try:
            digest = hashlib.sha256()
            with os.fdopen(handle, "wb") as file:
                for block in _blocks(arrays, {**facts, "format": FORMAT, "rounds": str(rounds)}):
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            path = folder / f"round-{rounds:06d}.{digest.hexdigest()[:32]}.checkpoint"
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(folder)
        _prune(folder, path, keep)
    return path


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove what ``newest`` makes superfluous: older ones past ``keep``, and those of a future that it replaces."""
    others = [path for path in found(folder) if path != newest]
    older = [path for path in others if _rounds(path) < _rounds(newest)]
    for path in others:
        if path not in older[: keep - 1]:
            path.unlink(missing_ok=True)


def _rounds(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def found(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder`` by their names, the one with most rounds first; nothing is verified."""
    names = [path for path in folder.glob("round-*") if _NAME.fullmatch(path.name)]
    return sorted(names, key=lambda path: (_rounds(path), path.name), reverse=True)


def remove_all(folder: Path) -> None:
    """Remove the checkpoints of a run that is finished, and the folder when nothing else is in it."""
    for path in found(folder):
        path.unlink(missing_ok=True)
    _sweep(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()


def read(path: Path) -> Checkpoint:
    """Return a checkpoint, every byte of which has been verified.

    Raises
    ------
    CheckpointError
        When its content does not match the checksum in its name, or is of another format.
    RecordError
        When it cannot be read at all.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path}: its name is not that of a checkpoint (round-<rounds>.<digest>.checkpoint)")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest[:32] != match[2]:
            raise CheckpointError(
                f"{path}: damaged ({path.stat().st_size} bytes do not match the checksum in its name)"
            )
        with safetensors.safe_open(path, "numpy") as file:
            facts = dict(file.metadata() or {})
        if facts.get("format") != FORMAT or facts.get("rounds") != str(int(match[1])):
            found_format = f"format {facts.get('format')!r}, rounds {facts.get('rounds')!r}"
            raise CheckpointError(f"{path}: {found_format}: not a checkpoint that this version of fedmpi reads")
        return Checkpoint(int(match[1]), load_file(path), facts)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def _blocks(arrays: Arrays, facts: Mapping[str, str]) -> Iterator[memoryview | bytes]:
    """Yield a safetensors file in pieces: length of the header (8 bytes), the header as JSON, the arrays' bytes."""
    header: dict[str, object] = {"__metadata__": dict(sorted(facts.items()))}
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    end = 0
    for name, array in plain.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants arrays aligned
    yield len(text).to_bytes(8, "little") + text
    for array in plain.values():
        data = array.reshape(-1).view(np.uint8)
        for start in range(0, data.size, _BLOCK):
            yield data[start : start + _BLOCK].data


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for path in folder.glob(f"{_SCRATCH}*"):
        path.unlink(missing_ok=True)
