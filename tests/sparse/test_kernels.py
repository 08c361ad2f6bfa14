"""Kernels: dense oracles, and the same bits from every implementation, range and target.

``dense_merge`` is the definition in float32, one client after the other over dense vectors; ``float64_merge`` is the
same mean without rounding to speak of.
"""

import sys
import threading
import types

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmpi.errors import ConfigError, WireError
from fedmpi.sparse import Mask, backend, kernels, kernels_portable, kernels_torch
from fedmpi.sparse.kernels import expand, masked_copy, merge_range, pack
from tests.sparse.support import SIZES, any_float32, bits, bits_equal

per_implementation = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def problems(draw):
    """Old vector, K masks with values, weights; some clients weigh nothing, some keep nothing or everything."""
    size = draw(st.one_of(st.sampled_from(SIZES), st.integers(0, 700)))
    clients = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = [draw(bits(size)) for _ in range(clients)]
    dense = [rng.standard_normal(size).astype(np.float32) for _ in range(clients)]
    weights = rng.random(clients).astype(np.float32)
    weights[rng.random(clients) < 0.2] = 0
    return rng.standard_normal(size).astype(np.float32), dense, kept, weights


def cut_values(size):
    """Ranges that cover a vector: the whole, or pieces that start at multiples of 64."""
    step = 64 * max(size // 256, 1)
    return [(lo, min(lo + step, size)) for lo in range(0, size, step)]


def dense_merge(old, dense, kept, weights, *, skip_pruned):
    numerator = np.zeros(old.size, np.float32)
    denominator = np.zeros(old.size, np.float32)
    held = np.zeros(old.size, bool)
    for values, mask, weight in zip(dense, kept, weights, strict=True):
        term = (values * weight).astype(np.float32)
        numerator = np.where(mask, (numerator + term).astype(np.float32), numerator)
        denominator = np.where(mask | (not skip_pruned), (denominator + weight).astype(np.float32), denominator)
        held |= mask
    with np.errstate(all="ignore"):
        mean = numerator / denominator
    return np.where(held & (denominator != 0), mean, old) if skip_pruned else mean


def float64_merge(old, dense, kept, weights, *, skip_pruned):
    w = weights.astype(np.float64)[:, None]
    m = np.array(kept) if skip_pruned else np.ones((len(kept), old.size))
    total = (w * m).sum(0)
    with np.errstate(all="ignore"):
        mean = (w * np.array(kept) * np.array(dense, np.float64)).sum(0) / total
    return np.where(total > 0, mean, old)


def run_merge(problem, *, skip_pruned, ranges=None):
    old, dense, kept, weights = problem
    masks = [Mask.from_bool(k) for k in kept]
    out = np.full(old.size, 77, np.float32)
    for lo, hi in ranges or [(0, old.size)]:
        values = [d[lo:hi][k[lo:hi]] for d, k in zip(dense, kept, strict=True)]
        result = merge_range(old, values, masks, weights, lo, hi, out, skip_pruned=skip_pruned)
        assert result is out
    return out


@per_implementation
@given(st.data())
def test_pack_is_boolean_indexing(implementation, data):
    size = data.draw(st.one_of(st.sampled_from(SIZES), st.integers(0, 700)))
    kept = data.draw(bits(size))
    theta = any_float32(np.random.default_rng(size), size)
    mask = Mask.from_bool(kept)
    assert bits_equal(pack(theta, mask), theta[kept])
    for lo, hi in cut_values(size):
        assert bits_equal(pack(theta, mask, lo, hi), theta[lo:hi][kept[lo:hi]])
        assert bits_equal(pack(theta[lo:hi], mask, lo, hi), theta[lo:hi][kept[lo:hi]])


def test_pack_of_all_entries_of_a_large_vector(implementation):
    """A copy; and as many values as entries do not make a mask that keeps fewer a full one."""
    size = (1 << 20) + 101
    theta = any_float32(np.random.default_rng(3), size)
    out, around = at_offset(size, 3)
    assert pack(theta, Mask.full(size), out=out) is out
    assert bits_equal(out, theta)
    assert (around() == 5).all()
    almost = Mask.from_bool(np.arange(size) != 77)
    with pytest.raises(WireError, match=f"out has {size} entries, the mask keeps {size - 1}"):
        pack(theta, almost, out=out)


@per_implementation
@given(st.data())
def test_expand_puts_values_back_and_zeros_elsewhere(implementation, data):
    size = data.draw(st.one_of(st.sampled_from(SIZES), st.integers(0, 700)))
    kept = data.draw(bits(size))
    theta = any_float32(np.random.default_rng(size), size)
    expected = np.zeros(size, np.float32)
    expected[kept] = theta[kept]
    mask = Mask.from_bool(kept)
    assert bits_equal(expand(theta[kept], mask), expected)
    out = np.full(size, 5, np.float32)
    for lo, hi in cut_values(size):
        expand(theta[lo:hi][kept[lo:hi]], mask, lo, hi, out)
    assert bits_equal(out, expected)


def at_offset(size, entries, fill=5):
    """A vector that starts so many entries after a border of 64 bytes, and a look at the entries around it."""
    room = np.full(size + 64, fill, np.float32)
    first = (16 - room.ctypes.data // 4) % 16 + 16 + entries
    return room[first : first + size], lambda: np.concatenate((room[:first], room[first + size :]))


@per_implementation
@given(st.data())
def test_masked_copy_is_pack_and_expand(implementation, data):
    """Bits and not numbers: NaNs of all payloads and signed zeros stay what they are; pruned entries are +0."""
    size = data.draw(st.one_of(st.sampled_from(SIZES), st.integers(0, 700)))
    kept = data.draw(bits(size))
    theta = any_float32(np.random.default_rng(size), size)
    expected = np.where(kept, theta.view(np.uint32), np.uint32(0)).view(np.float32)
    mask = Mask.from_bool(kept)
    assert bits_equal(masked_copy(theta, mask), expected)
    out, around = at_offset(size, data.draw(st.integers(0, 15)))
    for lo, hi in cut_values(size):
        assert masked_copy(theta, mask, lo, hi, out) is out
        assert bits_equal(masked_copy(theta[lo:hi], mask, lo, hi), expected[lo:hi])
    assert bits_equal(out, expected)
    assert (around() == 5).all()
    assert bits_equal(masked_copy(theta, mask, out=theta), expected)


@pytest.mark.parametrize("entries", [0, 1, 4, 8, 15])
def test_masked_copy_of_a_large_vector(implementation, entries):
    """Beyond the size from which the compiled kernels write past the caches, at every kind of place."""
    size = (1 << 20) + 64 + 37
    rng = np.random.default_rng(entries)
    theta, kept = any_float32(rng, size), rng.random(size) < 0.3
    kept[1000:5000] = True
    out, around = at_offset(size, entries)
    source, _ = at_offset(size, 15 - entries)
    source.view(np.uint32)[:] = theta.view(np.uint32)
    masked_copy(source, Mask.from_bool(kept), out=out)
    assert bits_equal(out, np.where(kept, theta.view(np.uint32), np.uint32(0)).view(np.float32))
    assert (around() == 5).all()
    masked_copy(source, Mask.from_bool(kept), out=source)
    assert bits_equal(source, out)


@per_implementation
@given(problems(), st.booleans())
def test_merge_is_the_dense_definition_bit_for_bit(implementation, problem, skip_pruned):
    if not skip_pruned and not problem[3].any():
        problem[3][0] = 0.5
    expected = dense_merge(*problem, skip_pruned=skip_pruned)
    assert bits_equal(run_merge(problem, skip_pruned=skip_pruned), expected)
    cuts = cut_values(problem[0].size)
    if cuts:
        assert bits_equal(run_merge(problem, skip_pruned=skip_pruned, ranges=cuts), expected)


@pytest.mark.parametrize("skip_pruned", [True, False])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 0.97])
def test_merge_over_many_blocks(implementation, density, skip_pruned):
    """Long enough for prefetching, blocks and tails; the error against float64 is that of float32."""
    rng = np.random.default_rng(11)
    size, clients = 100_003, 9
    kept = [rng.random(size) < density for _ in range(clients)]
    dense = [rng.standard_normal(size).astype(np.float32) for _ in range(clients)]
    problem = rng.standard_normal(size).astype(np.float32), dense, kept, rng.random(clients).astype(np.float32)
    out = run_merge(problem, skip_pruned=skip_pruned)
    assert bits_equal(out, dense_merge(*problem, skip_pruned=skip_pruned))
    assert np.abs(out - float64_merge(*problem, skip_pruned=skip_pruned)).max() < 2e-6


def test_merge_can_write_over_old(implementation):
    rng = np.random.default_rng(1)
    kept = [rng.random(1000) < 0.3 for _ in range(3)]
    dense = [rng.standard_normal(1000).astype(np.float32) for _ in range(3)]
    old = rng.standard_normal(1000).astype(np.float32)
    weights = np.array([1, 2, 3], np.float32)
    expected = dense_merge(old, dense, kept, weights, skip_pruned=True)
    values = [d[k] for d, k in zip(dense, kept, strict=True)]
    merge_range(old, values, [Mask.from_bool(k) for k in kept], weights, out=old, skip_pruned=True)
    assert bits_equal(old, expected)


def test_holders_are_decided_by_mask_not_by_value(implementation):
    """Client 0 keeps an exact zero: it counts as 0, it does not hand the entry to client 1 or to the old value."""
    masks = [Mask.from_bool(np.array([True, True])), Mask.from_bool(np.array([True, False]))]
    values = [np.zeros(2, np.float32), np.array([4], np.float32)]
    out = merge_range(np.array([9, 9], np.float32), values, masks, np.array([1, 1], np.float32), skip_pruned=True)
    assert out.tolist() == [2.0, 0.0]


def test_entries_without_weight_keep_their_old_value(implementation):
    """Entry 0: no holder. Entry 1: only a holder of weight 0. Entry 2: holders of weight 0 and 2."""
    masks = [Mask.from_bool(np.array([False, True, True])), Mask.from_bool(np.array([False, False, True]))]
    values = [np.array([5, 6], np.float32), np.array([7], np.float32)]
    old = np.array([1, -0.0, 3], np.float32)
    out = merge_range(old, values, masks, np.array([0, 2], np.float32), skip_pruned=True)
    assert bits_equal(out, np.array([1, -0.0, 7], np.float32))


@pytest.mark.parametrize("size", [1, 64, 200])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_stay_visible(implementation, bad, size):
    """And do not leak: a neighbour's NaN must not enter where its client keeps nothing."""
    kept = np.zeros(size, bool)
    kept[::2] = True
    poison = np.full(size, bad, np.float32)
    masks = [Mask.from_bool(kept), Mask.full(size)]
    values = [poison[kept], np.ones(size, np.float32)]
    out = merge_range(np.zeros(size, np.float32), values, masks, np.array([0.5, 0.5], np.float32), skip_pruned=True)
    assert np.array_equal(out[::2], poison[::2], equal_nan=True)
    assert (out[1::2] == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_value_of_weight_zero_is_not_hidden(implementation, bad):
    masks = [Mask.full(3), Mask.full(3)]
    values = [np.full(3, bad, np.float32), np.ones(3, np.float32)]
    out = merge_range(np.zeros(3, np.float32), values, masks, np.array([0, 1], np.float32), skip_pruned=True)
    assert np.isnan(out).all()


def test_old_values_that_are_not_finite_stay(implementation):
    mask = Mask.from_bool(np.array([True, False]))
    old = np.array([np.nan, np.nan], np.float32)
    out = merge_range(old, [np.ones(1, np.float32)], [mask], np.ones(1, np.float32), skip_pruned=True)
    assert out[0] == 1
    assert np.isnan(out[1])


@pytest.mark.parametrize("extra", [-1, 1, 64, 100])
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 64, 200, 10_000])
def test_values_that_do_not_fit_the_mask_are_refused(implementation, size, density, extra):
    mask = Mask.from_bool(np.random.default_rng(0).random(size) < density)
    count = mask.count() + (extra if mask.count() else abs(extra))
    values, dense = np.zeros(count, np.float32), np.zeros(size, np.float32)
    with pytest.raises(WireError, match=f"{count} values, the mask keeps {mask.count()} in 0:{size}"):
        expand(values, mask)
    with pytest.raises(WireError, match=f"out has {count} entries, the mask keeps {mask.count()}"):
        pack(dense, mask, out=values)
    fine = np.zeros(mask.count(), np.float32)
    with pytest.raises(WireError, match=f"client 1: {count} values, its mask keeps {mask.count()} in 0:{size}"):
        merge_range(dense, [fine, values], [mask, mask], np.ones(2, np.float32), skip_pruned=True)


MASK = Mask.full(130)
THETA = np.zeros(130, np.float32)
ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(THETA, MASK, 32, 64), "range 32:64 of 130 entries"),
        (lambda: pack(THETA, MASK, 0, 100), "range 0:100"),
        (lambda: pack(THETA, MASK, 64, 131), "range 64:131"),
        (lambda: pack(THETA, MASK, 128, 64), "range 128:64"),
        (lambda: pack(THETA[:129], MASK), r"theta has shape \[129\], the range needs \[130\]"),
        (lambda: pack(THETA.astype(float), MASK), "theta is float64"),
        (lambda: pack(np.zeros(260, np.float32)[::2], MASK), "contiguous"),
        (lambda: expand(THETA.astype(np.int32), MASK), "values is int32"),
        (lambda: masked_copy(THETA[:129], MASK), r"theta has shape \[129\], the range needs \[130\]"),
        (lambda: masked_copy(THETA, MASK, out=THETA[:64]), r"out has shape \[64\], the range needs \[130\]"),
        (lambda: masked_copy(THETA, MASK, 0, 100), "range 0:100"),
        (lambda: merge_range(THETA, [], [], ONE[:0], skip_pruned=True), "at least one, got 0, 0"),
        (lambda: merge_range(THETA, [THETA], [MASK, MASK], ONE, skip_pruned=True), "got 2, 1"),
        (lambda: merge_range(THETA, [THETA], [MASK], np.ones(2, np.float32), skip_pruned=True), "weights has shape"),
        (lambda: merge_range(THETA, [THETA], [MASK], -ONE, skip_pruned=True), r"weights \[-1.0\] are not all finite"),
        (lambda: merge_range(THETA, [THETA], [MASK], ONE * np.nan, skip_pruned=True), r"weights \[nan\]"),
        (lambda: merge_range(THETA, [THETA], [MASK], ONE * 0, skip_pruned=False), "weights are all 0"),
        (
            lambda: merge_range(
                THETA, [THETA, THETA], [MASK, Mask.full(129)], np.ones(2, np.float32), skip_pruned=True
            ),
            r"masks of \[130, 129\] entries",
        ),
    ],
)
def test_wrong_arguments_are_refused(implementation, call, message):
    with pytest.raises(WireError, match=message):
        call()


def test_threads_may_merge_at_once(implementation):
    """The compiled kernels release the interpreter lock; ranges of one vector go to different threads."""
    rng = np.random.default_rng(0)
    size = 64 * 4000
    kept = [rng.random(size) < 0.3 for _ in range(4)]
    dense = [rng.standard_normal(size).astype(np.float32) for _ in range(4)]
    problem = rng.standard_normal(size).astype(np.float32), dense, kept, np.ones(4, np.float32)
    out = np.empty(size, np.float32)
    masks = [Mask.from_bool(k) for k in kept]

    def work(lo, hi):
        values = [d[lo:hi][k[lo:hi]] for d, k in zip(dense, kept, strict=True)]
        merge_range(problem[0], values, masks, problem[3], lo, hi, out, skip_pruned=True)

    threads = [threading.Thread(target=work, args=(lo, lo + size // 8)) for lo in range(0, size, size // 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bits_equal(out, dense_merge(*problem, skip_pruned=True))


def chosen(monkeypatch, value):
    monkeypatch.setenv("FEDMPI_KERNELS", value)
    return backend.implementation.__wrapped__()


def test_the_environment_chooses(monkeypatch):
    assert chosen(monkeypatch, "numpy") is kernels_portable
    assert chosen(monkeypatch, "torch") is kernels_torch
    native = pytest.importorskip("fedmpi.sparse._native")
    assert chosen(monkeypatch, "native") is chosen(monkeypatch, "") is native
    with pytest.raises(ConfigError, match="FEDMPI_KERNELS='fast' is unknown: unset it, or use native, torch or numpy"):
        chosen(monkeypatch, "fast")


def test_without_the_extension_torch_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "fedmpi.sparse._native", None)  # what an import sees where it was not built
    assert chosen(monkeypatch, "") is kernels_torch
    with pytest.raises(ConfigError, match="FEDMPI_KERNELS=native, but the extension is not built here"):
        chosen(monkeypatch, "native")


def test_every_implementation_has_every_kernel():
    for module in backend.implementations().values():
        assert [name for name in kernels_portable.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize(("value", "name"), [("torch", "torch"), ("numpy", "numpy")])
def test_the_choice_is_named(monkeypatch, value, name):
    module = chosen(monkeypatch, value)
    monkeypatch.setattr(backend, "implementation", lambda: module)
    assert backend.active() == name


def test_active_is_one_of_the_names():
    assert kernels.active() in ("numpy", "torch", "native (scalar)", "native (avx2)", "native (avx512)")


def test_levels_are_those_of_the_machine():
    native = pytest.importorskip("fedmpi.sparse._native")
    assert native.levels()[0] == "scalar"
    assert native.level() == native.levels()[-1]
    for wrong in ("sse", 3):
        with pytest.raises(ValueError, match="not one that this machine has"):
            native.set_level(wrong)


@pytest.mark.parametrize(
    "call",
    [
        lambda n: n.pack(THETA, MASK.words[:2], THETA),
        lambda n: n.pack(THETA, np.full(3, 2**64 - 1, np.uint64), np.zeros(192, np.float32)),
        lambda n: n.expand(THETA, np.zeros(4, np.uint64), THETA),
        lambda n: n.masked_copy(THETA, MASK.words[:2], THETA),
        lambda n: n.masked_copy(THETA, np.full(3, 2**64 - 1, np.uint64), THETA),
        lambda n: n.masked_copy(THETA, MASK.words, THETA[:129]),
        lambda n: n.merge(THETA, [THETA], [MASK.words[:1]], ONE, THETA, skip_pruned=True),
        lambda n: n.merge(THETA, [THETA, THETA], [MASK.words], ONE, THETA, skip_pruned=True),
        lambda n: n.merge(THETA, [THETA], [MASK.words], ONE, THETA[:64], skip_pruned=True),
        lambda n: n.extract(MASK.words, MASK.words, np.zeros(2, np.uint64)),
        lambda n: n.extract(MASK.words[:2], MASK.words, np.zeros(3, np.uint64)),
        lambda n: n.deposit(MASK.words[:2], MASK.words, np.zeros(3, np.uint64)),
        lambda n: n.deposit(MASK.words, MASK.words, np.zeros(2, np.uint64)),
    ],
)
def test_the_extension_guards_its_own_memory(call):
    """Below the checks of the public functions: lengths and mask bits that would lead out of the arrays."""
    native = pytest.importorskip("fedmpi.sparse._native")
    with pytest.raises(ValueError, match="not fit"):
        call(native)


@pytest.mark.parametrize(
    "call",
    [
        lambda n: n.pack(THETA.astype(float), MASK.words, THETA),
        lambda n: n.expand(THETA, THETA, THETA),
        lambda n: n.count(THETA),
        lambda n: n.masked_copy(THETA, THETA, THETA),
        lambda n: n.merge(THETA, [None], [MASK.words], ONE, THETA, skip_pruned=True),
        lambda n: n.merge(THETA, 3, [MASK.words], ONE, THETA, skip_pruned=True),
    ],
)
def test_the_extension_refuses_other_objects(call):
    native = pytest.importorskip("fedmpi.sparse._native")
    with pytest.raises(TypeError):
        call(native)


def test_an_extension_of_older_sources_is_not_used(monkeypatch):
    old = types.ModuleType("fedmpi.sparse._native")
    old.__file__, old.pack = "/lib/_native.so", lambda: None
    monkeypatch.setitem(sys.modules, "fedmpi.sparse._native", old)
    monkeypatch.delenv("FEDMPI_KERNELS", raising=False)
    chosen = backend.implementation.__wrapped__
    assert chosen() is kernels_torch
    monkeypatch.setenv("FEDMPI_KERNELS", "native")
    with pytest.raises(ConfigError, match=r"/lib/_native.so is of an older version, without checksum: install"):
        chosen()
