"""Run under mpirun by test_collectives.py: every check on every rank, against plain float64 loops over dense vectors.

Rank 0 prints ``digest <hex>`` of all that was merged, which must not depend on the number of ranks.
"""

import hashlib
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn

from fedmpi.comm import (
    Address,
    Direction,
    Known,
    Meter,
    Patience,
    Ranks,
    Reduce,
    Scatter,
    Wire,
    gather_rows,
    merging,
    plan_downlink,
    plan_uplink,
    plan_wire,
)
from fedmpi.comm.device_memory import vector
from fedmpi.comm.link import slowest_link
from fedmpi.comm.ranks import check_same, host_names, place
from fedmpi.errors import LaunchError
from fedmpi.sparse import Head, Kind, Layout, Mask, ValueCoding, rounded

CLIENTS = 4
SEGMENT_BYTES = (256, 4096, 1 << 20, None)
UPLINKS = (
    *((size, "messages") for size in SEGMENT_BYTES),
    (256, "shared"),
    (None, "auto"),
    (256, "sharded"),
    (None, "sharded"),
)
PATIENCE = Patience(deadline=60.0)
merging.LEAST = 64  # so that even these short vectors are merged by several threads
RAW = Wire()
torch.set_num_threads(1)


def small_layout() -> Layout:
    module = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 33, 3), nn.Linear(33, 7))
    return Layout.of(module)


LAYOUT = small_layout()
N, B = LAYOUT.size, LAYOUT.buffer_size
assert N % 64, "the last range must be a short one"


class Case:
    """The same numbers on every rank, however many there are."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.old = rng.standard_normal(N).astype(np.float32)
        self.buffers = rng.standard_normal(B).astype(np.float32)
        self.kept = {c: rng.random(N) < density for c, density in enumerate((1.1, 0.5, -1.0, 0.05))}
        for kept in self.kept.values():
            kept[100:700] = False  # whole ranges that nobody keeps
        self.kept[0][:64] = True
        self.masks = {c: Mask.from_bool(kept) for c, kept in self.kept.items()}
        self.dense = {c: rng.standard_normal(N).astype(np.float32) * 10.0**c for c in range(CLIENTS)}
        self.values = {c: self.dense[c][self.kept[c]] for c in range(CLIENTS)}
        self.client_buffers = {c: rng.standard_normal(B).astype(np.float32) for c in range(CLIENTS)}


class Counted(MPI.Intracomm):
    """A communicator that knows how many bytes this rank has handed to it."""

    sent, by_tag = 0, Counter()

    def Isend(self, buf, dest, tag=0):
        size = memoryview(buf[0] if isinstance(buf, list) else buf).nbytes
        Counted.sent += size
        Counted.by_tag[dest, tag] += size
        return super().Isend(buf, dest, tag)


def check_bytes(ranks: Ranks, meter: Meter, uplink: str) -> None:
    """The server's log has all bytes that all ranks have sent, but for values that nobody sends."""
    sent = ranks.control.allreduce(Counted.sent)
    messages, control = meter.messages, meter.control
    laid = sum(m.values for m in messages) if uplink in {"shared", "auto"} else 0
    if ranks.is_server:
        noted = sum(m.total for m in messages) - laid + control if ranks.size > 1 else 0
        assert sent == noted, f"{uplink}: {sent} bytes sent, {noted} noted"


def jitter(ranks: Ranks, seed: int) -> None:
    """Make ranks come in another order every time."""
    time.sleep(0.02 * np.random.default_rng((seed, ranks.rank)).random())


def check_scatter(ranks: Ranks, case: Case, choice: str) -> None:
    shared = plan_downlink(ranks, N, choice)
    assert (shared is None) == (choice == "messages" or ranks.size == 1)
    for turn, segment_bytes in enumerate(SEGMENT_BYTES):
        meter = Meter()
        device_room = partial(vector, torch.device("cpu")) if turn % 2 else None
        scatter = Scatter(
            ranks,
            LAYOUT,
            segment_bytes=segment_bytes,
            patience=PATIENCE,
            meter=meter,
            shared=shared,
            device_room=device_room,
        )
        named = ranks.clients if ranks.is_server else ranks.hosted
        addresses = {c: Address(case.masks[c], 5 + c) for c in named}
        jitter(ranks, turn)
        source = (case.old, case.buffers) if ranks.is_server else None
        parcels = scatter(Kind.MODEL, turn, addresses, source, since=time.perf_counter())
        assert sorted(parcels) == list(ranks.hosted)
        for c, parcel in parcels.items():
            straight = device_room is not None and not ranks.is_server and shared is None
            assert isinstance(parcel.values, torch.Tensor) == straight
            assert parcel.packed().tobytes() == case.old[case.kept[c]].tobytes()
            assert parcel.dense().tobytes() == np.where(case.kept[c], case.old, np.float32(0)).tobytes()
            np.testing.assert_array_equal(parcel.buffers, case.buffers)
        check_meter(ranks, meter, Direction.DOWN, turn, case, scalars=0)
        if shared is not None and ranks.is_server:
            assert shared.array.tobytes() == case.old.tobytes()
            shared.array[:] = 0  # the parcels are the clients' own
    if shared is not None:
        shared.free()


def check_home(ranks: Ranks, case: Case, choice: str) -> None:
    """The server's vector lies where clients take it from: what it is changed to in place is what they get."""
    shared = plan_downlink(ranks, N, choice)
    scatter = Scatter(ranks, LAYOUT, segment_bytes=None, patience=PATIENCE, meter=Meter(), shared=shared)
    mine, expected = case.old.copy(), case.old.copy()
    theta = scatter.home(mine) if ranks.is_server else None
    assert theta is None or theta is (mine if shared is None else shared.array)
    named = ranks.clients if ranks.is_server else ranks.hosted
    for turn in range(3):
        source = None if theta is None else (theta, case.buffers)
        addresses = {c: Address(case.masks[c], 5) for c in named}
        for c, parcel in scatter(Kind.MODEL, turn, addresses, source, since=time.perf_counter()).items():
            assert parcel.packed().tobytes() == expected[case.kept[c]].tobytes()
        expected *= np.float32(-3)
        if theta is not None:
            theta *= np.float32(-3)
    del theta
    scatter.free()


def check_small_delivery(ranks: Ranks, case: Case) -> None:
    """One sparse client is not worth a vector for all: ``auto`` sends it messages."""
    shared, meter = plan_downlink(ranks, N, "auto"), Meter()
    scatter = Scatter(ranks, LAYOUT, segment_bytes=4096, patience=PATIENCE, meter=meter, shared=shared)
    named = {3} & set(ranks.clients if ranks.is_server else ranks.hosted)
    source = (case.old, case.buffers) if ranks.is_server else None
    parcels = scatter(
        Kind.RECOVERED, 1, {c: Address(case.masks[c], 5) for c in named}, source, since=time.perf_counter()
    )
    for c, parcel in parcels.items():
        np.testing.assert_array_equal(parcel.packed(), case.old[case.kept[c]])
    assert [m.values for m in meter.take()[0]] == ([4 * int(case.kept[3].sum())] if ranks.is_server else [])
    if shared is not None:
        assert not shared.array.any()
        shared.free()


def check_meter(ranks: Ranks, meter: Meter, direction: Direction, round: int, case: Case, scalars: int) -> None:
    messages, _ = meter.take()
    assert [m.client for m in messages] == (list(ranks.clients) if ranks.is_server else [])
    for m in messages:
        assert (m.direction, m.round) == (direction, round)
        assert (m.header, m.values, m.buffers) == (128, 4 * int(case.kept[m.client].sum()), 4 * B)
        assert m.scalars == 8 * scalars
        assert m.dense == 128 + 4 * N + 4 * B + 8 * scalars
        assert m.total == m.header + m.values + m.buffers + m.scalars + m.mask


def packed(reduce: Reduce, client: int, values: np.ndarray) -> np.ndarray:
    """Every other client packs its values where the server reads them, if it does; the others' are copied there."""
    room = reduce.room(client)
    if room is None or client % 2:
        return reduce.rounded(values)
    lying = room(values.size)
    lying[:] = values
    return lying


def exchange(
    ranks: Ranks,
    case: Case,
    segment_bytes: int | None,
    turn: int,
    weights: dict[int, float],
    skip: bool,
    wire: Wire = RAW,
    uplink: str = "messages",
    nodes: tuple[int, ...] | None = None,
    merges: int | None = None,
):
    """Send heads and values up; return the merged vector, the heads and the meter of the server.

    Twice where masks are remembered, unless ``merges`` says otherwise.
    """
    merges = merges or (2 if (uplink == "sharded" and ranks.size > 1) or nodes else 1)
    meter = Meter()
    memory = plan_uplink(ranks, N, uplink)
    ranks, Counted.sent, Counted.by_tag = replace(ranks, comm=Counted(ranks.comm)), 0, Counter()
    assert (memory is None) == (uplink in {"messages", "sharded"} or ranks.size == 1)
    reduce = Reduce(
        ranks,
        LAYOUT,
        segment_bytes=segment_bytes,
        max_scalars=2,
        patience=PATIENCE,
        meter=meter,
        wire=wire,
        shared=memory,
        sharded=uplink == "sharded",
        nodes=nodes,
    )
    full = Mask.full(N)
    values = {c: packed(reduce, c, case.values[c]) for c in ranks.hosted}
    outgoing = {
        c: (
            Head(
                kind=Kind.UPDATE,
                round=turn,
                client=c,
                base_epoch=7,
                epoch=8,
                mask=case.masks[c],
                buffers=case.client_buffers[c],
                scalars=np.array([c + 0.5, -c]),
                values_checksum=reduce.checksum(c, values[c]),
                segments=reduce.segments(case.masks[c]),
                coding=reduce.coding,
            ),
            full,
        )
        for c in ranks.hosted
    }
    known = {c: Known(full, 7) for c in ranks.clients} if ranks.is_server else {}
    references = {c: np.where(case.kept[c], case.old, np.float32(9)) for c in values}
    weights = weights if ranks.is_server else {}
    assert all((reduce.room(c) is None) == (memory is None or reduce.coding != ValueCoding.RAW_F32) for c in values)
    for again in range(merges):
        jitter(ranks, 10 + turn + again)
        heads = reduce.heads(Kind.UPDATE, turn, outgoing, known, since=time.perf_counter())
        theta = case.old.copy() if ranks.is_server else None
        masks = {c: head.mask for c, head in heads.items()} if ranks.is_server else {c: case.masks[c] for c in values}
        jitter(ranks, 20 + turn)
        reduce.merge(values, masks, heads, weights, theta, skip_pruned=skip, references=references)
    reduce.free()
    return theta, heads, meter


def masked_mean(case: Case, weights: dict[int, float], skip: bool) -> np.ndarray:
    """The definition, entry by entry of dense float64 vectors."""
    total, share, held = np.zeros(N), np.zeros(N), np.zeros(N, bool)
    for c, w in weights.items():
        total += w * np.where(case.kept[c], case.dense[c].astype(np.float64), 0.0)
        share += w * (case.kept[c] if skip else 1.0)
        held |= case.kept[c]
    if not skip:
        return total / share
    return np.where(held, total / np.where(held, share, 1.0), case.old.astype(np.float64))


def check_merge(ranks: Ranks, case: Case, digest) -> None:
    everyone = {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1}
    for weights, skip in ((everyone, True), (everyone, False), ({1: 0.9, 3: 0.1}, True), ({2: 1.0}, True)):
        results = []
        for turn, (segment_bytes, uplink) in enumerate(UPLINKS):
            theta, heads, meter = exchange(ranks, case, segment_bytes, turn, weights, skip, uplink=uplink)
            check_bytes(ranks, meter, uplink)
            if not ranks.is_server:
                assert heads == {}
                continue
            check_heads(case, heads)
            if uplink != "sharded" or ranks.size == 1:
                check_meter(ranks, meter, Direction.UP, turn, case, scalars=2)
            results.append(theta)
        if ranks.is_server:
            expected = masked_mean(case, weights, skip)
            scale = sum(w * np.abs(case.dense[c]) for c, w in weights.items()) / sum(weights.values())
            assert (np.abs(results[0] - expected) <= 1e-6 * np.maximum(scale, np.abs(expected))).all()
            for other in results[1:]:
                assert other.tobytes() == results[0].tobytes(), "segments or plan changed the bits"
            if skip:
                untouched = ~np.any([case.kept[c] for c in weights], axis=0)
                assert untouched.sum() >= 600
                assert results[0][untouched].tobytes() == case.old[untouched].tobytes()
            digest.update(results[0].tobytes())


def check_coded(ranks: Ranks, case: Case) -> None:
    """Lossless coding changes bytes and no bit; rounding is that of the values, before the sum."""
    rng = np.random.default_rng(9)
    for c in range(CLIENTS):  # a training step away from what was sent down
        case.dense[c] = (case.old * (1 + 1e-4 * rng.standard_normal(N))).astype(np.float32)
        case.values[c] = case.dense[c][case.kept[c]]
    weights = {0: 0.5, 1: 0.25, 3: 0.25}
    merged = {}
    for coding in ("raw", "lossless", "bf16", "fp16"):
        uplink = "shared" if coding == "lossless" else "messages"  # what is coded is sent all the same
        theta, _, meter = exchange(ranks, case, 4096, 3, weights, True, Wire(coding), uplink)
        messages, _ = meter.take()
        if theta is None:
            continue
        merged[coding] = theta
        for m in messages:
            assert m.values <= {"raw": 4, "lossless": 3.1, "bf16": 2, "fp16": 2}[coding] * case.kept[m.client].sum()
            assert ValueCoding(m.coding).name.lower().startswith(coding)
    if ranks.is_server:
        exact = dict(case.dense)
        assert merged["lossless"].tobytes() == merged["raw"].tobytes()
        for name, coding in (("bf16", ValueCoding.BF16), ("fp16", ValueCoding.FP16)):
            case.dense = {c: rounded(exact[c], coding) for c in range(CLIENTS)}
            np.testing.assert_allclose(merged[name], masked_mean(case, weights, True), rtol=1e-5, atol=1e-7)


def check_coded_downlink(ranks: Ranks, case: Case) -> None:
    rng = np.random.default_rng(8)
    before = (case.old * (1 + 1e-3 * rng.standard_normal(N))).astype(np.float32)
    for coding, reference in (("lossless", None), ("lossless", before), ("lossless", case.old), ("fp16", before)):
        meter = Meter()
        scatter = Scatter(ranks, LAYOUT, segment_bytes=4096, patience=PATIENCE, meter=meter, wire=Wire(coding))
        named = ranks.clients if ranks.is_server else ranks.hosted
        elsewhere = 0.0 if ranks.is_server else 5.0  # what ends hold at other positions may differ
        addresses = {
            c: Address(
                case.masks[c],
                5,
                None if reference is None else np.where(case.kept[c], reference, np.float32(elsewhere)),
            )
            for c in named
        }
        parcels = scatter(
            Kind.MODEL, 0, addresses, (case.old, case.buffers) if ranks.is_server else None, since=time.perf_counter()
        )
        for c, parcel in parcels.items():
            expected = case.old[case.kept[c]]
            expected = expected.astype(np.float16).astype(np.float32) if coding == "fp16" else expected
            assert parcel.packed().tobytes() == expected.tobytes()
        limit = 2 if coding == "fp16" else 4 if reference is None else 3.3 if reference is before else 0.1
        for m in meter.take()[0]:
            assert m.values <= limit * case.kept[m.client].sum()


def check_choice(ranks: Ranks) -> None:
    """All ranks choose alike, whatever each would have measured."""
    for bandwidth, expected in ((1e3, ValueCoding.LOSSLESS_DELTA), (1e15, ValueCoding.RAW_F32)):
        wire = plan_wire(ranks, "auto", "time", bandwidth, PATIENCE)
        assert wire.coding(reference=True) == (expected if ranks.size > 1 else ValueCoding.RAW_F32)
    everyone = ranks.comm.allgather(plan_wire(ranks, "auto", "time", 1e9, PATIENCE))
    assert len(set(everyone)) == 1
    assert ranks.size == 1 or (everyone[0].bandwidth == 1e9 and min(everyone[0].encode, everyone[0].decode) > 1e5)
    assert plan_wire(ranks, "auto", "time", None, PATIENCE) == Wire("auto")  # one host: memory
    if ranks.size > 1:
        found = slowest_link(ranks, range(1, ranks.size), PATIENCE)
        assert 1e3 < found < 1e12 if ranks.is_server else found == 0
    assert plan_wire(ranks, "auto", "bytes", None, PATIENCE).coding(reference=False) == ValueCoding.LOSSLESS


def check_heads(case: Case, heads: dict[int, Head]) -> None:
    assert list(heads) == list(range(CLIENTS))
    for c, head in heads.items():
        assert (head.client, head.epoch) == (c, 8)
        np.testing.assert_array_equal(head.mask.to_bool(), case.kept[c])
        np.testing.assert_array_equal(head.buffers, case.client_buffers[c])
        np.testing.assert_array_equal(head.scalars, [c + 0.5, -c])


def check_gather(ranks: Ranks) -> None:
    meter, width = Meter(), 3
    rows = {c: np.array([c, 10.0 * c, np.nan if c == 2 else -c]) for c in ranks.hosted}
    table = gather_rows(ranks, rows, width, PATIENCE, meter)
    assert (table is None) == (not ranks.is_server)
    if table is not None:
        expected = [[c, 10.0 * c, np.nan if c == 2 else -c] for c in range(CLIENTS)]
        np.testing.assert_array_equal(table, expected)
        assert meter.control == (0 if ranks.size == 1 else 8 * width * CLIENTS)


def check_set_up(comm: MPI.Intracomm, ranks: Ranks) -> None:
    assert ranks.hosts == place(CLIENTS, comm.size)
    assert len(host_names(comm)) == comm.size
    everyone = comm.allgather(ranks.hosted)
    assert sorted(c for hosted in everyone for c in hosted) == list(range(CLIENTS))
    assert comm.size == 1 or (everyone[0] == () and max(map(len, everyone)) - min(map(len, everyone[1:])) <= 1)
    check_same(comm, configuration="the same", version="1")
    if comm.size > 1:
        with pytest.raises(LaunchError, match=f"configuration: rank {comm.size - 1} differs from rank 0"):
            check_same(comm, version="1", configuration="other" if comm.rank == comm.size - 1 else "one")


def main() -> None:
    comm = MPI.COMM_WORLD
    ranks = Ranks.create(comm, CLIENTS)
    assert ranks.comm.rank == comm.rank
    assert MPI.Comm.Compare(ranks.comm, comm) == MPI.CONGRUENT  # a duplicate: our messages meet nobody else's
    digest = hashlib.sha256()
    check_set_up(comm, ranks)
    for seed in (1, 2):
        case = Case(seed)
        for choice in ("messages", "shared", "auto"):
            check_scatter(ranks, case, choice)
            check_home(ranks, case, choice)
        check_small_delivery(ranks, case)
        check_merge(ranks, case, digest)
        check_coded_downlink(ranks, case)
        check_coded(ranks, case)
    check_gather(ranks)
    check_choice(ranks)
    ranks.free()
    comm.Barrier()
    if comm.rank == 0:
        print("digest", digest.hexdigest())


def or_abort(main: Callable[[], None]) -> None:
    """Call ``main``; one rank's failed check ends the job."""
    try:
        main()
    except BaseException:  # noqa: BLE001 - whatever it is
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)


if __name__ == "__main__":
    or_abort(main)
