"""Run under mpirun by test_hierarchical.py: nodes that are pretended, against plain float64 loops over dense vectors.

Rank 0 prints ``digest <hex>`` of all that was merged; every check is on every rank.
"""

import hashlib
import os
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from mpi4py import MPI

from fedmpi.comm import Direction, Ranks, hierarchical
from fedmpi.comm.delegated import Delegated
from fedmpi.errors import RankFailure, WireError
from fedmpi.sparse import Mask
from tests.comm import collectives
from tests.comm.collectives import PATIENCE, Case, Counted, N, check_bytes, exchange, masked_mean

EPS = 2.0**-23
CLIENTS = 12


class Many(Case):
    """Twelve clients of many sizes, of which one keeps nothing and two are nearly zero where the others are large."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        rng = np.random.default_rng((seed, 1))
        densities = (1.1, 0.5, -1.0, 0.05, 0.7, 0.7, 0.3, 0.9, 0.01, 0.5, 0.2, 0.8)
        self.kept = {c: rng.random(N) < density for c, density in enumerate(densities)}
        for kept in self.kept.values():
            kept[100:700] = False
        self.masks = {c: Mask.from_bool(kept) for c, kept in self.kept.items()}
        scales = 10.0 ** rng.integers(-3, 3, CLIENTS)
        self.dense = {c: (scales[c] * rng.standard_normal(N)).astype(np.float32) for c in range(CLIENTS)}
        self.values = {c: self.dense[c][self.kept[c]] for c in range(CLIENTS)}
        self.client_buffers = dict.fromkeys(range(CLIENTS), self.buffers)


def worlds(size: int) -> list[tuple[int, ...]]:
    """Return nodes of the ranks of many kinds."""
    found = [tuple(range(size)), (7,) + (3,) * (size - 1)]
    if size > 2:
        found += [(0, 0) + (1,) * (size - 2), tuple(rank % 2 for rank in range(size))]
    if size > 4:
        found += [(0, 1, 1, 2, 2), (0, 2, 1, 1, 2)]
    return found


def drawn_weights(seed: int) -> dict[int, float]:
    """Return the weights of the clients, as the float32 that are used; one is 0, and one sends and is not merged."""
    weights = np.random.default_rng((seed, 2)).random(CLIENTS).astype(np.float32)
    weights[7] = 0
    return {c: float(w) for c, w in enumerate(weights) if c != 4}


def check_mean(case: Case, found: np.ndarray, weights: dict[int, float], skip: bool) -> None:
    """The bound of the docstring of `fedmpi.comm.hierarchical`, entry by entry, and what nobody holds is as it was."""
    magnitude = Case.__new__(Case)
    magnitude.kept, magnitude.old = case.kept, np.zeros(N)
    magnitude.dense = {c: np.abs(dense) for c, dense in case.dense.items()}
    expected, scale = masked_mean(case, weights, skip), masked_mean(magnitude, weights, skip)
    held = np.any([case.kept[c] for c, w in weights.items() if w], axis=0)
    wrong = ~(np.abs(found - expected) <= (2 * CLIENTS + 2) * EPS * scale)
    assert not (wrong & held).any(), f"{(wrong & held).sum()} entries"
    assert (~held).sum() >= 600
    if skip:
        assert found[~held].tobytes() == case.old[~held].tobytes()
    else:
        assert not found[~held].any()


def check_merges(ranks: Ranks, digest) -> None:
    for seed in (1, 2):
        case, weights = Many(seed), drawn_weights(seed)
        for skip in (True, False):
            plain = exchange(ranks, case, None, seed, weights, skip)[0]
            for nodes in worlds(ranks.size):
                results = []
                for turn, segment_bytes in enumerate((256, None)):
                    theta, _, meter = exchange(ranks, case, segment_bytes, turn, weights, skip, nodes=nodes)
                    check_bytes(ranks, meter, "hierarchical")
                    check_what_leaves(ranks, case, nodes, weights, meter)
                    results.append(theta)
                if theta is None or plain is None:
                    continue
                check_mean(case, theta, weights, skip)
                assert results[0].tobytes() == results[1].tobytes(), "segments or order of arrival changed the bits"
                digest.update(theta.tobytes())
                if len({*nodes}) == 1 or ranks.size == 1:
                    assert theta.tobytes() == plain.tobytes()


def check_what_leaves(ranks: Ranks, case: Case, nodes: tuple[int, ...], weights: dict[int, float], meter) -> None:
    """Every node sends the server what any of its clients keeps, once; counted where it is handed to MPI."""
    mine = {n: [c for c, host in enumerate(ranks.hosts) if nodes[host] == n] for n in {*nodes}}
    direct = [c for n, members in mine.items() for c in members if len(members) == 1 or nodes[0] == n or len(mine) == 1]
    led = [
        [case.kept[c] for c in members if weights.get(c)] for members in mine.values() if {*members}.isdisjoint(direct)
    ]
    unions = sum(4 * int(np.any(kept, axis=0).sum()) for kept in led if kept)
    expected = unions + sum(4 * int(case.kept[c].sum()) for c in direct)
    values = [1 + c for c in range(CLIENTS)] + [1 + CLIENTS + 2]  # tags of clients' values and of what leaders send
    arrived = ranks.control.allreduce(sum(Counted.by_tag[0, tag] for tag in values))
    if ranks.is_server and ranks.size > 1:
        assert arrived == 2 * expected  # in both merges of an exchange
        assert sum(m.values for m in meter.messages if m.direction == Direction.MEANS) == 2 * unions


class Spoilt(Counted):
    """Flips a bit of one message."""

    way = None

    def Isend(self, buf, dest, tag=0):
        if (self.rank, dest, tag) == Spoilt.way:
            buf = np.array(memoryview(buf[0] if isinstance(buf, list) else buf)).view(np.uint8).copy()
            buf[2] ^= 1
            Spoilt.way = None
        return super().Isend(buf, dest, tag)


def check_accidents(comm: MPI.Intracomm) -> None:
    """Damage is found by the server, who is late is named by the leader."""
    ranks, case, weights, nodes = Ranks.create(comm, CLIENTS), Many(1), drawn_weights(1), (0, 0, 1, 1, 1)
    collectives.Counted = Spoilt
    client = 6  # on rank 3, the first one there that keeps something
    for way, text in (
        ((3, 2, 1 + client), f"the update of client {client}: the checksum of"),
        ((2, 0, 1 + CLIENTS + 2), "the mean of the node of rank 2: the checksum of"),
    ):
        Spoilt.way = way
        if comm.rank == 0:
            with pytest.raises(WireError, match=text):
                exchange(ranks, case, None, 0, weights, True, nodes=nodes, merges=1)
        else:
            exchange(ranks, case, None, 0, weights, True, nodes=nodes, merges=1)
        comm.Barrier()
    Spoilt.way, hierarchical.LONGER = None, 4.0
    original = Delegated.merge

    def late(plan, task):
        if comm.rank == 3:
            time.sleep(8)
        original(plan, task)
        return {}, {}

    Delegated.merge = late
    collectives.PATIENCE = replace(PATIENCE, deadline=1.5)
    late_one = r"no answer within 1\.5 s: the update of client 2 on rank 3"  # its first one of all
    told = {0: r"no answer within 5\.5 s: the mean of the node of rank 2", 2: late_one}
    heard = ""
    try:
        exchange(ranks, case, None, 0, weights, True, nodes=nodes, merges=1)
    except RankFailure as failure:
        heard = str(failure)
    assert re.match(told.get(comm.rank, ""), heard), heard
    comm.Barrier()


def main() -> None:
    comm = MPI.COMM_WORLD
    ranks, digest = Ranks.create(comm, CLIENTS), hashlib.sha256()
    check_merges(ranks, digest)
    comm.Barrier()
    if comm.rank == 0:
        print("digest", digest.hexdigest(), flush=True)
    if comm.size == 5:
        check_accidents(comm)
    if comm.rank == 0:
        print("done", flush=True)
    comm.Barrier()
    os._exit(0)  # messages are still under way, which is the point


if __name__ == "__main__":
    collectives.or_abort(main)
