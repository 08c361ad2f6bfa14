"""``bench scale``: what an uplink costs the server, against the number of clients, for every plan."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedmpi.bench.dense import Streamed
from fedmpi.bench.field import Field, Way, nodes_of
from fedmpi.bench.records import Record, cell, milliseconds
from fedmpi.bench.sparse import Shared, Sparse
from fedmpi.comm import SERVER, Patience, Ranks, check_one_world, check_same
from fedmpi.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mpi4py import MPI

    from fedmpi.sparse import Layout

FEWEST = 8
BEYOND = (128, 256, 512)
"""Numbers of clients for which the straight line through the measured ones is printed."""
MODELLED = 3
"""From how many numbers of clients on."""
NAMES = ("server CPU", "wall")


def measure(
    comm: MPI.Intracomm, layout: Layout, densities: Sequence[float], repeats: int, nodes: int | None = None
) -> list[Record]:
    """*Collective*. Return all records on rank 0, an empty list elsewhere; ``bytes`` is the number of clients.

    In the world of so many ranks, the first 9, 17, 33 ... of them exchange while the others sleep. ``nodes`` is on how
    many the ranks are to pretend to be; without it the hierarchical plan is measured where there are several.

    Raises
    ------
    LaunchError
        Fewer than nine ranks, or ranks that do not mean the same.
    """
    check_one_world(comm.size)
    if comm.size <= FEWEST:
        raise LaunchError("costs against the number of clients need 9 ranks or more: mpirun -n 65 fedmpi bench scale")
    check_same(comm, options=repr((layout.hash, densities, repeats, nodes)))
    torch.set_num_threads(1)
    records: list[Record] = []
    clients = FEWEST
    while clients < comm.size:
        part = comm.Split(int(comm.rank <= clients), comm.rank)
        if comm.rank <= clients:
            records += _measure(part, layout, densities, repeats, nodes)
        Patience(deadline=3600.0).wait(comm.Ibarrier(), "ranks that exchange")
        part.Free()
        clients *= 2
    return records if comm.rank == SERVER else []


def _measure(
    comm: MPI.Comm, layout: Layout, densities: Sequence[float], repeats: int, nodes: int | None
) -> list[Record]:
    """*Collective*. Return the records of one number of clients."""
    ranks = Ranks.create(comm, comm.size - 1)  # type: ignore[arg-type]
    field = Field(ranks, layout, None)
    shared = Shared.where_possible(ranks, layout.size)
    records = list(_timed(field, _ways(field, densities, shared, nodes_of(ranks, nodes)), repeats))
    if shared is not None:
        shared.free()
    ranks.free()
    return records


def _ways(field: Field, densities: Sequence[float], shared: Shared | None, nodes: Sequence[int] | None) -> list[Way]:
    ways: list[Way] = [Streamed(field, "dense, whole vectors", whole=True)]
    for density in densities:
        ways += [Sparse(field, density), Sparse(field, density, sharded=True)]
        ways += [Sparse(field, density, nodes=nodes)] if nodes is not None else []
        ways += [Sparse(field, density, shared=shared)] if shared is not None else []
    return ways


def _timed(field: Field, ways: list[Way], repeats: int) -> Iterator[Record]:
    """*Collective*. Time the uplinks in turn; the first turn does not count."""
    spent = np.zeros((repeats + 1, len(ways), len(NAMES)))
    for turn in range(repeats + 1):
        for i, way in enumerate(ways):
            field.renew(way.theta)
            field.meet()
            start, cpu = time.perf_counter(), time.process_time()
            way.up()
            cpu = time.process_time() - cpu
            field.meet()
            spent[turn, i] = cpu, time.perf_counter() - start
            if turn == 0 and isinstance(way, Sparse) and field.ranks.is_server:
                way.check()
    clients = len(field.ranks.hosts)
    for i, way in enumerate(ways):
        for j, name in enumerate(NAMES):
            seconds, base = spent[1:, i, j], spent[1:, 0, j]
            ratio = float(median(seconds / np.maximum(base, 1e-9)))
            yield Record("scale", name, way.density, way.plan, way.coding, float(median(seconds)), clients, ratio)


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return the table, heads first: a row for each plan, a column for each number of clients, and a model beyond."""
    counts = sorted({r.bytes for r in records if r.bytes is not None})
    beyond = BEYOND if len(counts) >= MODELLED else ()
    heads = [*(f"{count} clients" for count in counts), *(f"model: {count}" for count in beyond)]
    table: list[tuple[str, ...]] = [("uplink", "plan", "density", *heads)]
    for name in NAMES:
        for plan, density in dict.fromkeys((r.plan, r.density) for r in records):
            found = {r.bytes: r.seconds or 0.0 for r in records if (r.name, r.plan, r.density) == (name, plan, density)}
            seconds = [found[count] for count in counts]
            table.append((name, plan, f"{density:g}", *map(milliseconds, seconds), *_model(counts, seconds, beyond)))
    return table


def _model(counts: Sequence[int], seconds: Sequence[float], beyond: Sequence[int]) -> Iterator[str]:
    """Yield the cells of the straight line through what was measured; where it falls, it says nothing."""
    if beyond:
        line = np.polynomial.Polynomial.fit(counts, seconds, 1)
        rises = line.deriv()(0.0) > 0
        yield from (milliseconds(float(line(count))) if rises else cell(None, 0) for count in beyond)
