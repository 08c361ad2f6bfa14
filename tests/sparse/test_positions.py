"""Positions of kept entries: found once, shared, bounded, gone with their mask; and kernels without room for them."""

import gc
import warnings

import numpy as np
import pytest

from fedmpi.sparse import Mask, kernels_torch, positions
from fedmpi.sparse.kernels import expand, merge_range, pack
from fedmpi.sparse.positions import Positions, Span
from tests.sparse.support import any_float32, bits_equal
from tests.sparse.test_kernels import dense_merge, run_merge

SIZE = 600_001  # three blocks, the last of them short and odd


def mask_of(seed, density=0.3, size=1000):
    return Mask.from_bool(np.random.default_rng(seed).random(size) < density)


@pytest.fixture
def torch_only(monkeypatch):
    for user in ("fedmpi.sparse.kernels", "fedmpi.sparse.mask"):
        monkeypatch.setattr(f"{user}.implementation", lambda: kernels_torch)


@pytest.fixture(params=[1 << 30, 0], ids=["room", "no-room"])
def room(request, monkeypatch, torch_only):
    """Run a test with positions that are kept, and with positions that are searched at every call."""
    cache = Positions(request.param)
    monkeypatch.setattr(kernels_torch, "positions", cache)
    monkeypatch.setattr(positions, "positions", cache)
    return cache


@pytest.mark.parametrize("size", [0, 1, 64, 1000, (1 << 20) + 7])
def test_positions_are_those_of_the_kept_entries(size):
    mask = mask_of(size, size=size)
    found = Positions(1 << 30).of(mask)
    assert found.dtype == np.int32
    assert np.array_equal(found, np.flatnonzero(mask.to_bool()))


def test_equal_masks_share_what_was_found_until_they_are_gone():
    cache = Positions(1 << 20)
    first, again, other = mask_of(1), mask_of(1), mask_of(2)
    assert cache.of(first) is cache.of(again)
    assert cache.of(other) is not cache.of(first)
    assert cache.nbytes == 4 * (first.count() + other.count())
    found = cache.of(first)
    del first
    assert cache.of(again) is found
    del again
    gc.collect()
    assert cache.nbytes == 4 * other.count()


def test_memory_is_bounded_and_what_is_in_use_stays():
    masks = [mask_of(seed) for seed in range(4)]
    cache = Positions(4 * (masks[0].count() + masks[1].count()))
    for _ in range(3):
        assert [cache.of(mask) is not None for mask in masks] == [True, True, False, False]
    assert cache.nbytes == 4 * (masks[0].count() + masks[1].count())


def test_a_mask_that_nobody_asks_for_makes_room(monkeypatch):
    monkeypatch.setattr(positions, "PATIENCE", 3)
    old, new = mask_of(1), mask_of(2)
    cache = Positions(4 * max(old.count(), new.count()))
    assert cache.of(old) is not None
    assert [cache.of(new) is not None for _ in range(4)] == [False, False, False, True]
    assert cache.of(old) is None


@pytest.mark.parametrize("density", [0.02, 0.4, 1.0])
def test_blocks_of_a_span(density, room):
    mask = mask_of(3, density, SIZE)
    kept = mask.to_bool()
    scratch = np.empty(64 * 100, np.int32)
    for lo, hi in [(0, SIZE), (128, 64 * 1000), (64 * 8000, SIZE)]:
        found = [None if part is None else part.copy() for part in Span(mask, lo, hi).blocks(scratch.size, scratch)]
        starts = range(lo, hi, scratch.size)
        for start, part in zip(starts, found, strict=True):
            if mask.is_full:
                assert part is None
            else:
                assert np.array_equal(part, np.flatnonzero(kept[start : min(start + scratch.size, hi)]))


@pytest.mark.parametrize("density", [0.02, 0.4, 1.0])
def test_pack_and_expand_over_many_blocks_and_ranges(density, room):
    mask, theta = mask_of(4, density, SIZE), any_float32(np.random.default_rng(0), SIZE)
    kept, out = mask.to_bool(), np.empty(SIZE, np.float32)
    for lo, hi in [(0, SIZE), (128, 64 * 1000), (64 * 8000, SIZE)]:
        values = theta[lo:hi][kept[lo:hi]]
        assert bits_equal(pack(theta, mask, lo, hi), values)
        assert bits_equal(expand(values, mask, lo, hi, out)[lo:hi], np.where(kept, theta, np.float32(0))[lo:hi])


@pytest.mark.parametrize("clients", [1, 8, 9])
@pytest.mark.parametrize("skip_pruned", [True, False])
def test_merge_over_many_blocks_and_ranges(room, clients, skip_pruned):
    rng = np.random.default_rng(clients)
    kept = [rng.random(SIZE) < (1.0 if k == 2 else 0.1 * k) for k in range(clients)]
    dense = [rng.standard_normal(SIZE).astype(np.float32) for _ in range(clients)]
    weights = (rng.random(clients) * (np.arange(clients) != 1) + (clients == 1)).astype(np.float32)
    problem = rng.standard_normal(SIZE).astype(np.float32), dense, kept, weights
    expected = dense_merge(*problem, skip_pruned=skip_pruned)
    ranges = [(0, 64 * 3000), (64 * 3000, 64 * 3001), (64 * 3001, SIZE)]
    assert bits_equal(run_merge(problem, skip_pruned=skip_pruned), expected)
    assert bits_equal(run_merge(problem, skip_pruned=skip_pruned, ranges=ranges), expected)


def test_changed_masks_and_weights_are_noticed(torch_only):
    """Denominators come from tables that outlive a call."""
    rng = np.random.default_rng(0)
    for seed in range(3):
        kept = [rng.random(1000) < 0.3 for _ in range(3)]
        dense = [rng.standard_normal(1000).astype(np.float32) for _ in range(3)]
        weights = rng.random(3).astype(np.float32)
        for order in ([0, 1, 2], [2, 0, 1]):
            problem = dense[seed], [dense[k] for k in order], [kept[k] for k in order], weights
            assert bits_equal(run_merge(problem, skip_pruned=True), dense_merge(*problem, skip_pruned=True))


def test_arrays_that_are_read_only_are_read_without_a_warning(torch_only):
    theta, mask = np.arange(1000, dtype=np.float32), mask_of(1)
    theta.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = pack(theta, mask)
        values.flags.writeable = False
        merged = merge_range(theta, [values], [mask], np.ones(1, np.float32), skip_pruned=True)
    assert np.array_equal(values, theta[mask.to_bool()])
    assert np.array_equal(merged, theta)
