"""Files that are always whole: atomic replacement, claimed disk space, one writer per file, errors in one line."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fedmpi.errors import FedmpiError

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOLCK}


class RecordError(FedmpiError, OSError):
    """The run file cannot be written (disk full, no permission, another writer); what was committed stays readable."""


@contextlib.contextmanager
def record_errors(path: Path, committed: int) -> Iterator[None]:
    """Turn any failure of the file system or of HDF5 below it into one RecordError line about ``path``.

    HDF5 raises OSError or RuntimeError with the system's errno inside its text only.
    """
    try:
        yield
    except RecordError:
        raise
    except (OSError, RuntimeError) as error:
        raise RecordError(f"{path}: {_reason(error)}; {committed} committed rounds stay readable") from error


def _reason(error: Exception) -> str:
    """Say what happened and what to do about it."""
    text = str(error)
    number = getattr(error, "errno", None)
    if number in {errno.ENOSPC, errno.EDQUOT} or "errno = 28" in text or "errno = 122" in text:
        return "disk full or quota reached, free space there and resume"
    if number == errno.EFBIG or "errno = 27" in text:
        return "file size limit reached (ulimit -f), raise it and resume"
    if number in {errno.EACCES, errno.EROFS, errno.EPERM}:
        return "no permission to write, choose another --out folder"
    return f"cannot write ({text})"


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power failure, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a scratch name beside ``path``; on success its content takes the place of ``path`` at once, else it goes.

    Readers see the old or the new file, never a mixture; a killed process leaves at most the scratch file.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.unlink(missing_ok=True)
    try:
        yield scratch
        scratch.chmod(0o600)  # masks and scores tell about a client's data: whoever may read them is the user's choice
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def copy_with_room(source: Path, target: Path, extra: int) -> None:
    """Copy a file and claim ``extra`` more bytes, so that a full disk shows here and not inside HDF5."""
    shutil.copyfile(source, target)
    claim(target, extra)


def claim(path: Path, extra: int) -> None:
    """Claim ``extra`` bytes of disk behind the end of ``path``; OSError where they do not exist.

    The file is longer then. HDF5 ignores what lies behind its own end and cuts it off on close.
    """
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, max(extra, 1))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise


class WriterLock:
    """One writer per run file: a lock on a small file beside it, gone with the process that holds it.

    The run file itself carries no lock, since HDF5's would keep every ordinary reader out while the run goes on.
    POSIX locks are not inherited, so a forked loader process that outlives a killed run does not keep it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.lock")
        self._file = self._path.open("a")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return
            self._file.close()
            raise RecordError(f"{path}: another process writes this run; wait for it or end it") from error

    def release(self) -> None:
        """Give the lock back and remove its file; harmless when repeated."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()
