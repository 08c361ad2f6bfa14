"""One rank fails, all raise: expected failures leave every rank at the same line, with the same story.

    with agree(ranks, "local training", patience) as stage:
        for client in ranks.hosted:
            stage.enter(client)
            ...

The rank that failed raises its own error; the others raise ``RankFailure: local training: client 3 on rank 4 (node17):
ValueError: ...``. A rank that raises ``Stopped`` has not failed: then all raise ``Stopped``. The exchange is an 8-byte
status to the server and an 8-byte verdict back; texts travel only after a failure or stop.
"""

import math
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from mpi4py import MPI

from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.waiting import Patience, keep_alive
from fedmpi.errors import FedmpiError, RankFailure, Stopped

STATUS_BYTES = 8
MAX_TEXT = 2000
STOP_MARK = "\x1a"
"""First character of a text that is no failure but a stop."""
GRACE_SECONDS = 4.0
"""How long ranks may go on working after one has failed; then the story is told without them, and the job ends."""
STOP_SECONDS = 30.0
"""The same after a stop, on which all ranks are to leave in good order: a batch may take so long."""


@dataclass
class Stage:
    """What this rank is doing; the body says for which client, so that an error names it and a person sees it."""

    name: str
    notice: Callable[[str], None]
    interrupt: Callable[[], None]
    client: int | None = None

    def enter(self, client: int) -> None:
        """Begin the work of ``client``, unless the run is to stop: then raise ``Stopped``."""
        self.interrupt()
        self.client = client
        self.notice(f"{self.name}: client {client}")


def control_bytes(ranks: Ranks) -> int:
    """Return the bytes that one successful ``agree`` hands to MPI over all ranks. *Not collective.*"""
    return 2 * STATUS_BYTES * (ranks.size - 1)


@contextmanager
def agree(ranks: Ranks, name: str, patience: Patience) -> Iterator[Stage]:
    """*Collective*. Run the body; leave normally only if it succeeded on every rank.

    Errors carry the story that all ranks have heard as a note (PEP 678), so that one rank can tell it for all.
    """
    stage, error = Stage(name, patience.notice, patience.interrupt), None
    try:
        yield stage
    except (Exception, SystemExit) as caught:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
        error = _as_exception(caught, name)
    story = _exchange(ranks, stage, error, patience)
    if story:
        error = _hear(story, error)
    if error is not None:
        raise error


def _hear(story: str, own: Exception | None) -> Exception:
    """Return what this rank raises after a story, with the story as a note; a failure anywhere outweighs a stop."""
    stops = story.startswith(STOP_MARK)
    told = story.removeprefix(STOP_MARK)
    if own is None or (isinstance(own, Stopped) and not stops):
        own = Stopped(told) if stops else RankFailure(told)
    own.add_note(told)
    return own


def _as_exception(caught: BaseException, name: str) -> Exception:
    """Return ``caught``, a quiet exit turned into an error: a rank that leaves alone would hang the others."""
    if isinstance(caught, Exception):
        return caught
    error = RuntimeError(f"sys.exit({getattr(caught, 'code', None)!r}) was called during {name}")
    error.__cause__ = caught
    return error


def _describe(ranks: Ranks, stage: Stage, error: Exception) -> bytes:
    if isinstance(error, Stopped):
        return f"{STOP_MARK}{error}".encode()[:MAX_TEXT]
    who = [f"client {stage.client}"] if stage.client is not None else []
    who += [f"rank {ranks.rank} ({socket.gethostname()})"] if ranks.size > 1 else []
    what = str(error) if isinstance(error, FedmpiError) else f"{type(error).__name__}: {error}"
    return ": ".join([stage.name, *([" on ".join(who)] if who else []), what]).encode()[:MAX_TEXT]


def _exchange(ranks: Ranks, stage: Stage, error: Exception | None, patience: Patience) -> str:
    """Return the story of the first rank that failed, the same on all ranks, or an empty string."""
    mine = _describe(ranks, stage, error) if error is not None else b""
    if ranks.is_server:
        texts, late = _collect(ranks, stage, mine, patience)
        story = _story(texts)
        _tell(ranks, [rank for rank in texts if rank != SERVER and rank not in late], story, patience)
    else:
        _send(ranks, SERVER, mine, patience)
        # The server gives up first and tells who is late.
        longer = replace(patience, deadline=patience.deadline + 2 * GRACE_SECONDS)
        story = _receive(ranks, SERVER, f"{stage.name}: the verdict of the server", longer)
    return story.decode(errors="replace")


def _collect(ranks: Ranks, stage: Stage, mine: bytes, patience: Patience) -> tuple[dict[int, bytes], set[int]]:
    """Return the text of every rank (empty = success), and who has not come.

    Once a rank has failed, the others are waited for only a little longer: they may be in the middle of an hour's work
    that nobody needs any more. After a stop they look for it themselves, between two batches.
    """
    lengths = np.zeros((ranks.size, 1), np.int64)
    awaited = {rank: ranks.control.Irecv(lengths[rank], rank) for rank in range(1, ranks.size)}
    texts = {SERVER: mine}
    end = math.inf

    def settled() -> bool:
        nonlocal end
        for rank in [rank for rank, request in awaited.items() if request.Test()]:
            del awaited[rank]
            texts[rank] = _receive_text(ranks, rank, int(lengths[rank, 0]), patience)
        end = min(end, time.monotonic() + _grace(texts))
        return not awaited or time.monotonic() > end

    try:
        patience.until(settled, lambda: f"{stage.name}: {_who(ranks, min(awaited))}")
    except RankFailure as failure:
        texts[min(awaited)] = str(failure).encode()
    keep_alive([*awaited.values(), lengths])
    return dict(sorted(texts.items())), set(awaited)


def _grace(texts: Mapping[int, bytes]) -> float:
    """Return how many seconds the others are still waited for, given what has been heard."""
    told = [text for text in texts.values() if text]
    if not told:
        return math.inf
    return STOP_SECONDS if all(text.startswith(STOP_MARK.encode()) for text in told) else GRACE_SECONDS


def _who(ranks: Ranks, rank: int) -> str:
    clients = [str(c) for c, host in enumerate(ranks.hosts) if host == rank]
    return f"{'clients' if len(clients) > 1 else 'client'} {', '.join(clients)} on rank {rank}"


def _story(texts: Mapping[int, bytes]) -> bytes:
    told = [text for text in texts.values() if text]
    failed = [text for text in told if not text.startswith(STOP_MARK.encode())]
    if len(failed) < 2:
        return (failed or told or [b""])[0]
    more = len(failed) - 1
    return failed[0] + f" ({more} more {'ranks' if more > 1 else 'rank'} failed too)".encode()


def _tell(ranks: Ranks, others: Iterable[int], story: bytes, patience: Patience) -> None:
    for other in others:
        _send(ranks, other, story, patience)


def _send(ranks: Ranks, dest: int, text: bytes, patience: Patience) -> None:
    length = np.array([len(text)], np.int64)
    requests = [ranks.control.Isend(length, dest)]
    if text:
        requests.append(ranks.control.Isend([text, MPI.BYTE], dest))
    patience.wait_all(requests, f"rank {dest} to take a status")


def _receive(ranks: Ranks, source: int, what: str, patience: Patience) -> bytes:
    length = np.zeros(1, np.int64)
    patience.wait(ranks.control.Irecv(length, source), what)
    return _receive_text(ranks, source, int(length[0]), patience)


def _receive_text(ranks: Ranks, source: int, length: int, patience: Patience) -> bytes:
    if not 0 < length <= 2 * MAX_TEXT:
        return b"" if length == 0 else f"rank {source} sent a status of {length} bytes".encode()
    text = np.empty(length, np.uint8)
    patience.wait(ranks.control.Irecv([text, MPI.BYTE], source), f"the story of rank {source}")
    return text.tobytes()
