"""``bench exchange``: the model down to all clients and their mean up, dense and sparse side by side."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from mpi4py import MPI

from fedmpi.bench.dense import Collective, Pickled, Streamed
from fedmpi.bench.field import Field, Way, nodes_of, peak_above
from fedmpi.bench.records import Record, cell, milliseconds
from fedmpi.bench.sparse import Shared, Sparse
from fedmpi.bench.timing import Times, middle, ratio
from fedmpi.comm import SERVER, Ranks, check_one_world, check_same
from fedmpi.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fedmpi.sparse import Layout

PHASES = ("down", "up")
WAIT_SECONDS = 1.0


def measure(
    comm: MPI.Intracomm,
    layout: Layout,
    densities: Sequence[float],
    codings: Sequence[str],
    repeats: int,
    segment_bytes: int | None,
    nodes: int | None = None,
) -> list[Record]:
    """*Collective*. Return all records on rank 0, an empty list elsewhere.

    ``nodes`` is on how many the ranks are to pretend to be, for the hierarchical plan; None = as they are.

    Seconds are wall time at the server, from all ranks ready to all ranks done. ``ratio_to_dense`` compares a phase
    with the dense plan that is fastest in it, and an exchange with the fastest of each phase; memory with one dense
    vector.

    Raises
    ------
    LaunchError
        Fewer than two ranks, or ranks that do not mean the same.
    WireError
        A mean came out wrong.
    """
    check_one_world(comm.size)
    if comm.size < 2:
        raise LaunchError("an exchange needs a server and a client: mpirun -n 9 fedmpi bench exchange")
    check_same(comm, options=repr((layout.hash, densities, codings, repeats, segment_bytes, nodes)))
    ranks = Ranks.create(comm, comm.size - 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        field = Field(ranks, layout, segment_bytes)
        shared = Shared.where_possible(ranks, layout.size)
        ways = _ways(field, densities, codings, shared, nodes_of(ranks, nodes))
        records = list(_measured(field, ways, repeats))
    finally:
        torch.set_num_threads(threads)
    if shared is not None:
        shared.free()
    ranks.free()
    return records if comm.rank == SERVER else []


def _ways(
    field: Field,
    densities: Sequence[float],
    codings: Sequence[str],
    shared: Shared | None,
    nodes: Sequence[int] | None,
) -> list[Way]:
    dense: list[Way] = [
        Streamed(field, "dense, whole vectors", whole=True),
        Streamed(field, "dense, segmented", whole=False),
        Collective(field),
        Pickled(field),
    ]
    sparse = [Sparse(field, density, coding) for coding in codings for density in densities]
    raw = densities if "raw" in codings else ()
    sparse += [Sparse(field, density, "raw", shared) for density in raw if shared is not None]
    sparse += [Sparse(field, density, sharded=True) for density in raw]
    return [*dense, *sparse, *(Sparse(field, density, nodes=nodes) for density in raw if nodes is not None)]


def _measured(field: Field, ways: list[Way], repeats: int) -> Iterator[Record]:
    """*Collective*. Time all ways in turn, then look at memory and at what waiting costs."""
    times: dict[int, Times] = {i: {phase: [] for phase in PHASES} for i in range(len(ways))}
    for turn in range(repeats + 1):
        for i, way in enumerate(ways):
            field.renew(way.theta)
            spent = {"down": field.timed(way.down), "up": field.timed(way.up)}
            for phase, seconds in spent.items() if turn else ():
                times[i][phase].append(seconds)
            if turn == 0 and isinstance(way, Sparse) and field.ranks.is_server:
                way.check()
    for spent_by in times.values():
        spent_by["exchange"] = [a + b for a, b in zip(*(spent_by[phase] for phase in PHASES), strict=True)]
    yield from _timed_records(ways, times)
    yield from _memory(field, ways)
    yield _waiting(field)


def _timed_records(ways: list[Way], times: dict[int, Times]) -> Iterator[Record]:
    best = {phase: _fastest_dense(ways, times, phase) for phase in PHASES}
    best["exchange"] = [a + b for a, b in zip(*(best[phase] for phase in PHASES), strict=True)]
    for phase, base in best.items():
        for way, spent in zip(ways, times.values(), strict=True):
            down, up = way.moved()
            moved = {"down": down, "up": up, "exchange": down + up}[phase]
            seconds = middle(spent[phase])
            yield Record(
                "exchange", phase, way.density, way.plan, way.coding, seconds, moved, ratio(spent[phase], base)
            )


def _fastest_dense(ways: list[Way], times: dict[int, Times], phase: str) -> list[float]:
    dense = (times[i][phase] for i, way in enumerate(ways) if not isinstance(way, Sparse))
    return min(dense, key=middle)


def _memory(field: Field, ways: list[Way]) -> Iterator[Record]:
    """*Collective*. Measure the server's memory above its state: its vector, what is known of masks, the plan."""
    for way in ways:
        field.renew(way.theta)
        seconds = time.perf_counter()
        field.meet()
        peak = peak_above(lambda way=way: (way.down(), way.up()))  # type: ignore[misc]
        field.meet()
        seconds = time.perf_counter() - seconds
        share = None if peak is None else peak / (4 * field.layout.size)
        yield Record("exchange", "server memory", way.density, way.plan, way.coding, seconds, peak, share)


def _waiting(field: Field) -> Record:
    """*Collective*. Return what all clients together burn of a core per second while they wait for the server."""
    ranks, word = field.ranks, np.zeros(1)
    field.meet()
    start, cpu = time.perf_counter(), time.process_time()
    if ranks.is_server:
        time.sleep(WAIT_SECONDS)
        for rank in range(1, ranks.size):
            ranks.comm.Send(word, rank)
    else:
        field.patience.wait(ranks.comm.Irecv(word, SERVER), "the server, which sleeps")
    burnt = np.array([0.0 if ranks.is_server else (time.process_time() - cpu) / (time.perf_counter() - start)])
    total = np.zeros(1)
    field.patience.wait(ranks.comm.Ireduce(burnt, total, MPI.SUM, SERVER), "all ranks")
    return Record("exchange", "waiting, CPU per second", 1.0, "polling", "none", float(total[0]), None, None)


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return the table, heads first."""
    dense = {r.name: r.bytes for r in records if r.density == 1 and r.plan == "dense, segmented"}
    table: list[tuple[str, ...]] = [("what", "plan", "values", "density", "time", "/ dense", "MB", "bytes / dense")]
    for r in records:
        base, memory = dense.get(r.name), r.name == "server memory"
        share = None if memory or not base or r.bytes is None else r.bytes / base
        cells = [r.name, r.plan, r.coding, f"{r.density:g}", milliseconds(r.seconds or 0), cell(r.ratio_to_dense, 2)]
        table.append((*cells, cell(None if r.bytes is None else r.bytes / 1e6, 1), cell(share, 4)))
    return table
