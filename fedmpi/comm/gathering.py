"""The plain uplink: clients send their values, and the server merges them range by range as they arrive."""

from heapq import merge

from mpi4py import MPI

from fedmpi.comm.inbox import Contents, Inbox, Own, Stream, tag
from fedmpi.comm.merging import Merge
from fedmpi.comm.ranks import SERVER
from fedmpi.comm.segments import cut
from fedmpi.comm.task import Surroundings, Task
from fedmpi.comm.waiting import keep_alive


def gather_merge(around: Surroundings, task: Task) -> dict[int, int]:
    """*Collective*. Merge into ``task.theta`` on the server; return the bytes of each client's values there."""
    if task.theta is None:
        _send(around, task)
        return {}
    job = Merge(task.masks, task.heads, task.weights, task.theta, around.meter, skip_pruned=task.skip_pruned)
    streams = {c: _stream(around, task, c) for c in sorted(task.masks)}
    step = min((around.cuts.step(mask.count()) for mask in task.masks.values()), default=1)
    try:
        for lo, hi in cut(0, task.theta.size, step):
            job.add(lo, hi, {c: stream.take(lo, hi) for c, stream in streams.items()})
    except BaseException:
        keep_alive(late for stream in streams.values() for late in stream.under_way)
        raise
    job.check()
    return {c: stream.bytes for c, stream in streams.items()}


def _stream(around: Surroundings, task: Task, client: int) -> Stream:
    mask, ranks = task.masks[client], around.ranks
    contents = Contents(around.cuts.ranges(mask.count()), mask, task.codings[client], task.theta)
    if client in task.values:
        return Own(task.encoded(client, contents.ranges, around.meter), contents, around.meter)
    return Inbox(ranks.comm, ranks.hosts[client], client, contents, around.patience, around.meter)


def _send(around: Surroundings, task: Task) -> None:
    """Send the parts of all hosted clients in the order in which they are merged."""
    sends: list[MPI.Request] = []
    ranges = {c: around.cuts.ranges(task.masks[c].count()) for c in sorted(task.values)}
    parts = {c: task.encoded(c, cuts, around.meter) for c, cuts in ranges.items()}
    for _, client in merge(*([(lo, c) for lo, _ in cuts] for c, cuts in ranges.items())):
        data = next(parts[client])
        if data.size:
            sends.append(around.ranks.comm.Isend([data, MPI.BYTE], SERVER, tag(client)))
    around.patience.wait_all(sends, "the server to take the updates")
