"""How a process leaves after an error: one line, the right exit code, and no rank left behind that waits for it."""

import contextlib
import hashlib
import os
import sys
import time
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import click

from fedmpi.errors import ConfigError, DataError, FedmpiError, LaunchError, RankFailure, Stopped

if TYPE_CHECKING:
    from mpi4py import MPI

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_BUG, EXIT_STOPPED, EXIT_INTERRUPTED = 0, 1, 2, 70, 75, 130
FAREWELL_SECONDS = (2.0, 3.0, 5.0)
"""How long a rank waits for the others to fail as well, before it ends the job for all: one that failed itself; rank 0,
having heard of a failure; any other rank, having heard of it."""
STOPPED_SECONDS = 30.0
"""The same after a stop. All ranks have agreed on it and are on their way, the server after it has closed the run file,
perhaps on a busy machine or a slow disk; under srun, a job that is ended then loses the exit code for the queue."""
FORWARD_SECONDS = 1.0
"""How long a launcher has to forward what was said before the job is ended: MPICH's drops what it has not read yet."""
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
"""Set by launchers in every process that they start."""


def leave(error: BaseException) -> NoReturn:
    """*Collective* where it can be. Say once what failed and leave; a rank that fails alone ends the whole job.

    The ranks meet once more, for a short time. If all come, all have failed: they agree on the exit code, and of those
    that have the same to say the first one says it. If not, the others are in the middle of something and would wait
    for this rank for ever.
    """
    code, told, text = exit_code(error), bool(getattr(error, "__notes__", ())), _text(error)
    comm = _world()
    if comm is None or comm.size == 1:
        if isinstance(error, SystemExit):
            raise error
        _say(error, text, "" if _is_first_launched() else None)
        sys.exit(code)
    try:
        everyone = _meet(comm, code, text, _patience(comm, error, told=told))
        if everyone is not None:
            same = [rank for rank, (_, digest) in enumerate(everyone) if digest == everyone[comm.rank][1]]
            where = "" if told or len(same) == comm.size else f" (rank {comm.rank})"
            _say(error, text, where if comm.rank == same[0] else None)
            sys.exit(max(theirs for theirs, _ in everyone))
        _say(error, text, "" if told else f" (rank {comm.rank})")
    except Exception:  # noqa: BLE001 - even failing failed
        traceback.print_exc()
    sys.stderr.flush()
    time.sleep(FORWARD_SECONDS)
    comm.Abort(code)
    sys.exit(code)  # not reached where Abort does its work


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error: 2 wrong input, 75 run me again, 130 interrupted, 1 expected, 70 a bug."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) and error.code else EXIT_FAILED
    if isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        return EXIT_INTERRUPTED
    if isinstance(error, Stopped):
        return EXIT_STOPPED
    if isinstance(error, click.ClickException | ConfigError | DataError | LaunchError):
        return EXIT_USAGE
    return EXIT_FAILED if isinstance(error, FedmpiError) else EXIT_BUG


def _text(error: BaseException) -> str:
    """Return what a person should read: one line for what was expected, everything for a bug."""
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r}) was called in the middle of the run"
    if isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        return "interrupted"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, FedmpiError):
        return "\n".join(getattr(error, "__notes__", ())) or str(error)
    lines = "".join(traceback.format_exception(error))
    return f"this is a bug in fedmpi; please report these lines:\n{lines.rstrip()}"


def _say(error: BaseException, text: str, where: str | None) -> None:
    if where is not None:
        what = "stopped" if isinstance(error, Stopped) else f"error{where}"
        click.echo(f"fedmpi: {what}: {text}", err=True)


def _world() -> "MPI.Intracomm | None":
    """Return COMM_WORLD if MPI is up; it is started for the purpose when a launcher has started several of us."""
    if "mpi4py.MPI" not in sys.modules and _launched_rank() is not None:
        with contextlib.suppress(ImportError, RuntimeError):
            import_module("mpi4py.MPI")
    module = sys.modules.get("mpi4py.MPI")
    if module is None or not module.Is_initialized() or module.Is_finalized():
        return None
    world: MPI.Intracomm = module.COMM_WORLD
    return world


def _launched_rank() -> str | None:
    """Return the rank that a launcher gave this process; whether MPI sees it as well is another question."""
    return next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), None)


def _is_first_launched() -> bool:
    return _launched_rank() in {None, "0"}


def _patience(comm: "MPI.Intracomm", error: BaseException, *, told: bool) -> float:
    """Return how long to wait for the others, in seconds: whoever knows most gives up first, and speaks for all."""
    if isinstance(error, Stopped):
        return STOPPED_SECONDS
    second_hand = told and isinstance(error, RankFailure)
    return FAREWELL_SECONDS[0 if not second_hand else 1 if comm.rank == 0 else 2]


def _meet(comm: "MPI.Intracomm", code: int, text: str, seconds: float) -> list[tuple[int, int]] | None:
    """Return (exit code, digest of the text) of every rank; None when some do not come within ``seconds``."""
    import numpy as np  # noqa: PLC0415

    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
    mine, everyone = np.array([code, digest], np.int64), np.empty((comm.size, 2), np.int64)
    request = comm.Iallgather(mine, everyone)
    end = time.monotonic() + seconds
    while not request.Test():
        if time.monotonic() > end:
            return None
        time.sleep(0.01)
    return [(int(theirs), int(digest)) for theirs, digest in everyone]
