"""One rank fails, all raise: expected failures leave every rank at the same line, with the same story.

    with agree(ranks, "local training", patience) as stage:
        for client in ranks.hosted:
            stage.enter(client)
            ...

The rank that failed raises its own error; the others raise ``RankFailure: local training: client 3 on rank 4 (node17):
ValueError: ...``. The exchange is an 8-byte status to the server and an 8-byte verdict back; texts travel only after a
failure.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from fedmpi.comm.ranks import SERVER, Ranks
from fedmpi.comm.waiting import Patience
from fedmpi.errors import FedmpiError, RankFailure

STATUS_BYTES = 8
MAX_TEXT = 2000


@dataclass
class Stage:
    """What this rank is doing; the body says for which client, so that an error names it and a person sees it."""

    name: str
    notice: Callable[[str], None]
    client: int | None = None

    def enter(self, client: int) -> None:
        """Begin the work of ``client``."""
        self.client = client
        self.notice(f"{self.name}: client {client}")


def control_bytes(ranks: Ranks) -> int:
    """Return the bytes that one successful ``agree`` hands to MPI over all ranks. *Not collective.*"""
    return 2 * STATUS_BYTES * (ranks.size - 1)


@contextmanager
def agree(ranks: Ranks, name: str, patience: Patience) -> Iterator[Stage]:
    """*Collective*. Run the body; leave normally only if it succeeded on every rank."""
    stage, error = Stage(name, patience.notice), None
    try:
        yield stage
    except (Exception, SystemExit) as caught:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
        error = _as_exception(caught, name)
    story = _exchange(ranks, stage, error, patience)
    if error is not None:
        raise error
    if story:
        raise RankFailure(story)


def _as_exception(caught: BaseException, name: str) -> Exception:
    """Return ``caught``, a quiet exit turned into an error: a rank that leaves alone would hang the others."""
    if isinstance(caught, Exception):
        return caught
    error = RuntimeError(f"sys.exit({getattr(caught, 'code', None)!r}) was called during {name}")
    error.__cause__ = caught
    return error


def _describe(ranks: Ranks, stage: Stage, error: Exception) -> bytes:
    who = f"rank {ranks.rank} ({socket.gethostname()})"
    if stage.client is not None:
        who = f"client {stage.client} on {who}"
    what = str(error) if isinstance(error, FedmpiError) else f"{type(error).__name__}: {error}"
    return f"{stage.name}: {who}: {what}".encode()[:MAX_TEXT]


def _exchange(ranks: Ranks, stage: Stage, error: Exception | None, patience: Patience) -> str:
    """Return the story of the first rank that failed, or an empty string."""
    mine = _describe(ranks, stage, error) if error is not None else b""
    if ranks.is_server:
        texts = [mine, *_collect(ranks, stage, patience)]
        story = next((text for text in texts if text), b"")
        _tell(ranks, story, patience)
        return story.decode(errors="replace")
    _send(ranks, SERVER, mine, patience)
    return _receive(ranks, SERVER, f"{stage.name}: the verdict of the server", patience).decode(errors="replace")


def _collect(ranks: Ranks, stage: Stage, patience: Patience) -> list[bytes]:
    """Return the text of every other rank (empty = success), in rank order."""
    lengths = np.zeros((ranks.size - 1, 1), np.int64)
    requests = [ranks.control.Irecv(lengths[i], i + 1) for i in range(ranks.size - 1)]
    for i, request in enumerate(requests):
        clients = [c for c, host in enumerate(ranks.hosts) if host == i + 1]
        patience.wait(request, f"{stage.name}: rank {i + 1} with client(s) {clients}")
    return [_receive_text(ranks, i + 1, int(n), patience) for i, n in enumerate(lengths[:, 0])]


def _tell(ranks: Ranks, story: bytes, patience: Patience) -> None:
    for other in range(1, ranks.size):
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
    if not 0 < length <= MAX_TEXT:
        return b"" if length == 0 else f"rank {source} sent a status of {length} bytes".encode()
    text = np.empty(length, np.uint8)
    patience.wait(ranks.control.Irecv([text, MPI.BYTE], source), f"the story of rank {source}")
    return text.tobytes()
