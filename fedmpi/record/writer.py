"""The writer of a run file: rank 0's, whole for every reader at any moment, no committed round ever lost.

How a round is committed
------------------------
Almost always in place. The chunks of many rounds were allocated and filled beforehand, so a new round alters its own
cells, one extent (8 bytes) per dataset, and at last, after an fsync, the 8 bytes of ``committed_rounds``. No other
byte of the file changes, hence *any* mixture of old and new bytes is a whole file that holds all earlier rounds: a
process killed at any moment, or a reader that looks in the middle, finds nothing else. This rests on object headers
without checksums (``libver`` "earliest") and on rows that go straight to their place; tests check it byte by byte.

When the chunks are used up (after 256 rounds at most), the file is copied beside itself, the round goes into the copy
with new chunks behind it, and the copy replaces the file at once. Its disk space is claimed before HDF5 starts, so a
full disk is met there, with the old file untouched.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt

from fedmpi.errors import SchemaError, Stopped
from fedmpi.record import layout, rebuild
from fedmpi.record.access import names
from fedmpi.record.storage import RecordError, WriterLock, copy_with_room, record_errors, replacing
from fedmpi.record.texts import Provenance, set_root_text, write_provenance
from fedmpi.record.values import Rows, Values, baseline_rows, round_rows
from fedmpi.record.working import WorkingFile

_log: Final = logging.getLogger(__name__)


def utc_now() -> str:
    """Return the present time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunWriter:
    """Writes one run file, round by round; made by :meth:`create` or :meth:`reopen`, ended by :meth:`close`.

    Not collective: rank 0 alone has one. As a context manager it closes with status ``finished``, ``stopped`` when the
    run is to be resumed, or ``failed`` with the exception's text.
    """

    def __init__(self, path: Path, lock: WriterLock) -> None:
        self.path = path
        self._lock: WriterLock | None = lock
        self._failed = False
        self._file = WorkingFile(path)
        self.clients, self.layers = names(self._file.file)

    @classmethod
    def create(
        cls,
        path: str | Path,
        clients: Sequence[str],
        layers: Sequence[str],
        provenance: Provenance,
        *,
        rounds: int | None = None,
    ) -> "RunWriter":
        """Create a run file with no rounds.

        Parameters
        ----------
        path
            The file, ``run.h5`` in the run folder by custom. Nothing is ever overwritten.
        clients, layers
            Names, in index order; no layers means no ``/layers`` group.
        provenance
            Texts, or lists of texts, by name.
        rounds
            How many rounds are expected, None if unknown; it only sets how much space is prepared at once.

        Raises
        ------
        SchemaError
            If the file exists, or names are empty or not unique.
        RecordError
            If it cannot be written.
        """
        path = Path(path)
        _check_names("client", clients, least=1)
        _check_names("layer", layers, least=0)
        with _locked(path, 0) as lock:
            if path.exists():
                raise SchemaError(f"{path} exists already and is never overwritten; choose another --out or resume it")
            form = layout.Form.working(len(clients), len(layers), rounds)
            with replacing(path) as scratch, layout.build(scratch, clients, layers, form) as file:
                write_provenance(file.create_group("provenance"), provenance)
                set_root_text(file, "status", "running")
                set_root_text(file, "created", utc_now())
        return cls(path, lock)

    @classmethod
    def reopen(
        cls,
        path: str | Path,
        committed_rounds: int,
        provenance: Provenance | None = None,
        *,
        rounds: int | None = None,
    ) -> "RunWriter":
        """Continue a run file after its first ``committed_rounds`` rounds; what lies beyond is cut off.

        ``provenance`` describes the resuming process and is kept under ``/provenance/resume_<n>``.

        Raises
        ------
        SchemaError
            If it is no run file that this version can continue, or holds fewer rounds.
        RecordError
            If it cannot be written.
        """
        path = Path(path)
        with _locked(path, committed_rounds) as lock:
            rebuild.restart(path, committed_rounds, rounds, provenance)
        return cls(path, lock)

    @property
    def committed(self) -> int:
        """Number of committed rounds, which is also the number of the next round."""
        return self._file.rounds

    def baseline(self, values: Values) -> None:
        """Store the untrained model's scores, float64[C] by name (``map``, ``rank1``, ...), before round 0.

        SchemaError for an unknown name or shape, RecordError if it cannot be written.
        """
        rows = baseline_rows(values, len(self.clients))
        with self._writing():
            self._file.set_baseline(rows)

    def commit(
        self, round: int, scalars: Values, clients: Values, layers: Values, messages: npt.NDArray[np.void]
    ) -> None:
        """Commit one round: when this returns, every reader sees it and no crash loses it.

        Parameters
        ----------
        round
            Must be the next one, :attr:`committed`.
        scalars, clients, layers
            Variables of ``/rounds``, of ``/clients`` (arrays [C]) and of ``/layers`` (arrays [C, L]); the byte
            variables that messages sum to, the means over clients, and variables with a default may be left out.
        messages
            The round's messages, MESSAGE_DTYPE[n], whose bytes are the truth that byte variables must agree with.

        Raises
        ------
        SchemaError
            For an unknown, missing, ill-shaped or contradicting value; nothing is written.
        RecordError
            If it cannot be written; all earlier rounds stay readable, and the writer takes no more rounds.
        """
        if round != self.committed:
            raise SchemaError(f"round {round} cannot be committed now, {self.committed} is the next one")
        rows = round_rows(round, scalars, clients, layers, messages, names=(self.clients, self.layers))
        with self._writing():
            self._write(rows, messages)

    def close(self, status: Literal["finished", "stopped", "failed"], error: str | None = None) -> None:
        """End the file: state why, then cut, compress and checksum it; harmless when repeated.

        Where there is no room to compress, the file stays as it is, whole, and a warning says so.
        """
        if self._lock is None:
            return
        try:
            self._finish(status, error or "")
        finally:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close as finished, or as failed with the exception in one line."""
        if error is None:
            self.close("finished")
        elif isinstance(error, Stopped):
            self.close("stopped", str(error))
        else:
            self.close("failed", f"{type(error).__name__}: {error}")

    def _write(self, rows: Rows, messages: npt.NDArray[np.void]) -> None:
        """Put a round where it belongs: into chunks that exist, or with new ones into a copy of the file."""
        need = self._file.missing_bytes(len(messages))
        if need == 0:
            self._file.append(rows, messages)
            return
        self._file.close()
        try:
            with replacing(self.path) as scratch:
                copy_with_room(self.path, scratch, need)
                with WorkingFile(scratch) as copy:
                    copy.append(rows, messages)
        finally:
            self._file = WorkingFile(self.path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Guard a write: errors become one line, and after one the writer takes no more."""
        if self._lock is None or self._failed:
            raise RecordError(f"{self.path}: the writer is closed or has failed; resume the run to write on")
        try:
            with record_errors(self.path, self.committed):
                yield
        except RecordError:
            self._failed = True
            raise

    def _finish(self, status: str, error: str) -> None:
        """State how the run ended, which needs no disk space, then pack, which does and may fail."""
        try:
            with record_errors(self.path, self.committed):
                self._file.set_texts(status=status, error=error, stopped=utc_now())
                self._file.close()
        except RecordError as problem:
            if not self._failed:
                raise
            _log.warning("how the run ended is not in its file: %s", problem)  # the first error is told by its own
        try:
            with record_errors(self.path, self.committed):
                rebuild.pack(self.path)
        except RecordError as problem:
            _log.warning("the run file stays uncompressed: %s", problem)


@contextlib.contextmanager
def _locked(path: Path, committed: int) -> Iterator[WriterLock]:
    """Take the lock for a writer about to be made; given back if making it fails."""
    with record_errors(path, committed), contextlib.ExitStack() as stack:
        lock = WriterLock(path)
        stack.callback(lock.release)
        yield lock
        stack.pop_all()


def _check_names(what: str, names: Sequence[str], least: int) -> None:
    """Refuse names that cannot label a dimension."""
    if len(names) < least or len(set(names)) != len(names) or not all(names):
        raise SchemaError(f"{what} names must be unique and not empty, at least {least}: {list(names)}")
