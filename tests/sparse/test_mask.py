"""Masks against plain bool arrays."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.sparse import Mask
from tests.sparse.support import SIZES, bits


@st.composite
def pairs(draw):
    size = draw(st.one_of(st.sampled_from(SIZES), st.integers(0, 500)))
    return draw(bits(size)), draw(bits(size))


@given(pairs(), st.data())
def test_behaves_as_its_bool_array(pair, data):
    a, b = pair
    mask, other = Mask.from_bool(a), Mask.from_bool(b)
    lo = data.draw(st.integers(0, a.size))
    hi = data.draw(st.integers(lo, a.size))
    assert mask.size == a.size
    assert np.array_equal(mask.to_bool(), a)
    assert np.array_equal(mask.to_bool(lo, hi), a[lo:hi])
    assert mask.count() == a.sum()
    assert mask.count(lo, hi) == a[lo:hi].sum()
    assert mask.is_full == a.all()
    assert np.array_equal((mask & other).to_bool(), a & b)
    assert np.array_equal(mask.difference(other).to_bool(), a & ~b)
    assert np.array_equal(mask.symmetric_difference(other).to_bool(), a ^ b)
    assert (mask == other) == np.array_equal(a, b)
    assert (mask.hash == other.hash) == np.array_equal(a, b)


@pytest.mark.parametrize("size", SIZES)
def test_full(size):
    assert Mask.full(size) == Mask.from_bool(np.ones(size, bool))
    assert Mask.full(size).is_full
    assert Mask.full(size).density == 1.0


def test_the_full_mask_is_one_for_all_and_gone_with_the_last_who_holds_it():
    """Sixteen clients that keep everything need the memory of one mask; nothing stays behind."""
    held = Mask.full(12345)
    assert Mask.full(12345) is held
    watched = weakref.ref(held)
    del held
    gc.collect()
    assert watched() is None
    assert Mask.full(12345).count() == 12345


def test_bit_order():
    kept = np.zeros(70, bool)
    kept[[0, 9, 69]] = True
    assert Mask.from_bool(kept).words.tolist() == [1 | 1 << 9, 1 << 5]
    assert Mask.from_bool(kept).bitmap.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 32]


def test_counts_on_every_implementation(implementation):
    kept = np.random.default_rng(5).random(10_000) < 0.3
    mask = Mask.from_bool(kept)
    assert mask.count() == kept.sum()
    assert mask.count(65, 9_999) == kept[65:9_999].sum()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs())
def test_restriction_and_its_reverse(implementation, pair):
    inner, outer = (Mask.from_bool(kept) for kept in pair)
    restricted = inner.within(outer)
    assert np.array_equal(restricted.to_bool(), pair[0][pair[1]])
    assert restricted.spread(outer) == inner & outer


def test_restriction_of_long_masks(implementation):
    rng = np.random.default_rng(8)
    kept, chosen = rng.random(30_001) < 0.2, rng.random(30_001) < 0.7
    restricted = Mask.from_bool(kept).within(Mask.from_bool(chosen))
    assert np.array_equal(restricted.to_bool(), kept[chosen])
    assert np.array_equal(restricted.spread(Mask.from_bool(chosen)).to_bool(), kept & chosen)


def test_spread_needs_as_many_entries():
    with pytest.raises(WireError, match="a mask of 63 entries does not spread over 64"):
        Mask.full(63).spread(Mask.full(64))


def test_lengths_are_part_of_the_hash():
    assert Mask.from_bool(np.zeros(3, bool)).hash != Mask.from_bool(np.zeros(4, bool)).hash
    assert Mask.from_bool(np.zeros(3, bool)) != Mask.from_bool(np.zeros(4, bool))


def test_hash_is_stable_over_versions():
    # Part of the wire format.
    assert Mask.from_bool(np.arange(70) % 3 == 0).hash.hex() == "1a537f4f9556d1a7c60b2da7d9ea0da0"


def test_is_immutable():
    mask = Mask.full(64)
    with pytest.raises(ValueError, match="read-only"):
        mask.words[0] = 0
    with pytest.raises(AttributeError):
        mask.size = 3


def test_is_hashable_and_not_equal_to_other_things():
    assert len({Mask.full(65), Mask.full(65), Mask.full(64)}) == 2
    assert Mask.full(1) != "x"


@pytest.mark.parametrize(
    ("words", "size", "message"),
    [
        (np.zeros(2, np.uint64), 64, r"64 entries has uint64\[1\] words, got uint64\[2\]"),
        (np.zeros(1, np.int64), 64, "got int64"),
        (np.full(1, 1 << 7, np.uint64), 7, "beyond entry 7"),
    ],
)
def test_wrong_words_are_refused(words, size, message):
    with pytest.raises(WireError, match=message):
        Mask(words, size)


def test_sizes_must_agree():
    with pytest.raises(WireError, match="64 and 65"):
        Mask.full(64) & Mask.full(65)


def test_bitmap_of_wrong_length_is_refused():
    with pytest.raises(WireError, match="has 9 bytes"):
        Mask.from_bytes(np.zeros(8, np.uint8), 65)
