"""The uplink whose values the server merges range by range: sent as messages, or read in memory that it shares."""

from collections.abc import Mapping
from heapq import merge

from mpi4py import MPI

from fedmpi.comm.inbox import Contents, Inbox, Laid, Own, Stream, address, tag
from fedmpi.comm.merging import PIECES, Merge, helpers
from fedmpi.comm.ranks import SERVER
from fedmpi.comm.segments import WORD, cut
from fedmpi.comm.shared import SharedUpdates
from fedmpi.comm.task import Surroundings, Task
from fedmpi.comm.waiting import keep_alive


def gather_merge(around: Surroundings, task: Task, memory: SharedUpdates | None) -> dict[int, int]:
    """*Collective*. Merge into ``task.theta`` on the server; return the bytes of each client's values there."""
    laid = [c for c in sorted(task.masks) if memory is not None and memory.takes(c, task.codings[c])]
    if task.theta is None:
        _send(around, task, memory, laid)
        return {}
    job = Merge(task.masks, task.heads, task.weights, task.theta, around.meter, skip_pruned=task.skip_pruned)
    streams = {c: _stream(around, task, c, memory if c in laid else None) for c in sorted(task.masks)}
    try:
        if streams and len(laid) == len(streams):
            _merge_laid(job, streams, task.theta.size, len({around.ranks.hosts[c] for c in laid}))
        else:
            _merge_arriving(around, job, streams, task)
    except BaseException:
        keep_alive(late for stream in streams.values() for late in stream.under_way)
        raise
    _thank(around, laid)
    job.check()
    return {c: stream.bytes for c, stream in streams.items()}


def _merge_arriving(around: Surroundings, job: Merge, streams: Mapping[int, Stream], task: Task) -> None:
    """Merge one range of all clients while the next ones arrive."""
    step = min((around.cuts.step(mask.count()) for mask in task.masks.values()), default=1)
    for lo, hi in cut(0, 0 if task.theta is None else task.theta.size, step):
        job.add(lo, hi, {c: stream.take(lo, hi) for c, stream in streams.items()})


def _merge_laid(job: Merge, streams: Mapping[int, Stream], size: int, waiting: int) -> None:
    """Merge what lies in memory as a whole, with the cores of the ranks that wait for it."""
    threads = helpers(size, waiting)
    step = max(WORD, size // (PIECES * threads) // WORD * WORD)
    pieces = [(lo, hi, {c: stream.take(lo, hi) for c, stream in streams.items()}) for lo, hi in cut(0, size, step)]
    job.add_all(pieces, threads)


def _stream(around: Surroundings, task: Task, client: int, memory: SharedUpdates | None) -> Stream:
    mask, ranks = task.masks[client], around.ranks
    if memory is not None:
        return Laid(memory, ranks, client, mask, around.patience, around.meter)
    contents = Contents(around.cuts.ranges(mask.count()), mask, task.codings[client], task.theta)
    if client in task.values:
        return Own(task.encoded(client, contents.ranges, around.meter), contents, around.meter)
    return Inbox(ranks.comm, address(ranks, client), contents, around.patience, around.meter)


def _send(around: Surroundings, task: Task, memory: SharedUpdates | None, laid: list[int]) -> None:
    """Lay down or send the parts of all hosted clients in the order in which they are merged."""
    comm, sends = around.ranks.comm, []
    for c in laid:
        with around.meter.time_encoding(c):
            memory.lay(c, task.values[c])  # type: ignore[union-attr]
        sends += [comm.Isend([b"", MPI.BYTE], SERVER, tag(c)), comm.Irecv([bytearray(), MPI.BYTE], SERVER, tag(c))]
    ranges = {c: around.cuts.ranges(task.masks[c].count()) for c in sorted(task.values) if c not in laid}
    parts = {c: task.encoded(c, cuts, around.meter) for c, cuts in ranges.items()}
    for _, client in merge(*([(lo, c) for lo, _ in cuts] for c, cuts in ranges.items())):
        data = next(parts[client])
        if data.size:
            sends.append(comm.Isend([data, MPI.BYTE], SERVER, tag(client)))
    around.patience.wait_all(sends, "the server to take the updates")


def _thank(around: Surroundings, laid: list[int]) -> None:
    """Tell the clients that their memory is theirs again."""
    ranks = around.ranks
    told = [ranks.comm.Isend([b"", MPI.BYTE], ranks.hosts[c], tag(c)) for c in laid]
    around.patience.wait_all(told, "the clients to hear that their updates are merged")
