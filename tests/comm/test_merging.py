"""Ranges that are merged side by side give the bits of one after the other, and what goes wrong in one is heard."""

import os

import numpy as np
import pytest

from fedmpi.comm import Meter
from fedmpi.comm.merging import LEAST, Merge, helpers
from fedmpi.errors import WireError
from fedmpi.sparse import Flag, Head, Kind, Mask

SIZE = 64 * 50 + 7
WEIGHTS = {0: 0.5, 1: 0.25, 2: 0.25}


@pytest.fixture
def case():
    rng = np.random.default_rng(4)
    kept = {c: rng.random(SIZE) < 0.4 for c in WEIGHTS}
    dense = {c: rng.standard_normal(SIZE).astype(np.float32) for c in WEIGHTS}
    return kept, dense, rng.standard_normal(SIZE).astype(np.float32)


def merge_of(kept, theta, meter):
    masks = {c: Mask.from_bool(k) for c, k in kept.items()}
    heads = {c: Head(Kind.UPDATE, 0, c, 0, 1, mask, flags=Flag.SHARED) for c, mask in masks.items()}
    return Merge(masks, heads, WEIGHTS, theta, meter, skip_pruned=True)


def pieces(kept, dense, step):
    ranges = [(lo, min(lo + step, SIZE)) for lo in range(0, SIZE, step)]
    return [(lo, hi, {c: dense[c][lo:hi][kept[c][lo:hi]] for c in kept}) for lo, hi in ranges]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_bits_are_those_of_float32_sums_in_client_order(case, threads):
    kept, dense, old = case
    total, share = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    for c, weight in WEIGHTS.items():
        total[kept[c]] += dense[c][kept[c]] * np.float32(weight)
        share[kept[c]] += np.float32(weight)
    expected = old.copy()
    expected[share > 0] = total[share > 0] / share[share > 0]
    theta, meter = old.copy(), Meter()
    merge_of(kept, theta, meter).add_all(pieces(kept, dense, 192), threads)
    assert theta.tobytes() == expected.tobytes()
    assert meter.seconds["merge"] > 0


def test_an_error_in_a_thread_is_raised(case):
    kept, dense, theta = case
    parts = pieces(kept, dense, 640)
    parts[3][2][1] = parts[3][2][1][:-1]
    with pytest.raises(WireError, match="client 1: "):
        merge_of(kept, theta, Meter()).add_all(parts, 2)


@pytest.mark.parametrize(
    ("cores", "waiting", "size", "threads"),
    [(8, 3, 100 * LEAST, 3), (2, 8, 100 * LEAST, 2), (8, 8, 4 * LEAST, 4), (8, 8, 10, 1), (1, 8, 100 * LEAST, 1)],
)
def test_no_more_threads_than_cores_waiting_ranks_and_work(monkeypatch, cores, waiting, size, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert helpers(size, waiting) == threads
