"""The proxy sampler against what its description promises, counted image by image."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.reid.sampling import proxy_batches


def _proxies(sizes, outliers=0, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    labels = np.concatenate([labels, np.full(outliers, -1, dtype=np.int64)])
    return np.random.default_rng(seed).permutation(labels)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=20), outliers=st.integers(0, 30), seed=st.integers(0, 9))
def test_count_size_and_no_outlier(sizes, outliers, seed):
    proxies = _proxies(sizes, outliers, seed)
    batches = proxy_batches(proxies, 32, 4, np.random.default_rng(seed))
    labelled = sum(sizes)
    if labelled < 2:
        assert batches == []
        return
    assert len(batches) == max(1, labelled // 32)
    assert {len(batch) for batch in batches} == ({32} if labelled >= 32 else {min(32, 4 * len(sizes))})
    assert all(batch.dtype == np.int64 and (proxies[batch] >= 0).all() for batch in batches)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=8, max_size=16), seed=st.integers(0, 9))
def test_four_images_of_each_proxy_without_needless_repetition(sizes, seed):
    proxies = _proxies([size + 3 for size in sizes], 5, seed)
    for batch in proxy_batches(proxies, 32, 4, np.random.default_rng(seed)):
        for group in batch.reshape(8, 4):
            assert len(set(proxies[group])) == 1
            assert len(set(group)) == 4  # every proxy has four images, so none is shown twice in a visit


def test_small_proxy_repeats_its_images_evenly():
    proxies = _proxies([1, 2, 3] + [4] * 13)
    seen = 0
    for batch in proxy_batches(proxies, 32, 4, np.random.default_rng(1)):
        for group in batch.reshape(8, 4):
            size = int((proxies == proxies[group[0]]).sum())
            counts = Counter(group.tolist())
            assert len(counts) == min(size, 4)
            assert max(counts.values()) - min(counts.values()) <= 1
            seen += size < 4
    assert seen > 0


def test_every_proxy_is_visited_before_one_comes_again():
    proxies = _proxies([8] * 24)  # 192 images: 6 batches, 48 visits = two passes over 24 proxies
    visits = proxies[np.concatenate(proxy_batches(proxies, 32, 4, np.random.default_rng(2)))[::4]]
    assert len(visits) == 48
    assert sorted(visits[:24]) == sorted(visits[24:]) == list(range(24))
    assert visits[:24].tolist() != visits[24:].tolist()


def test_generator_decides_everything():
    proxies = _proxies([5] * 20, 7)
    first, again, other = (
        np.concatenate(proxy_batches(proxies, 16, 4, np.random.default_rng(seed))) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_all_images_of_a_proxy_get_their_turn():
    proxies = _proxies([9] * 8)
    rng = np.random.default_rng(5)
    drawn = np.concatenate([index for _ in range(40) for index in proxy_batches(proxies, 32, 4, rng)])
    counts = np.bincount(drawn, minlength=len(proxies))
    assert counts.sum() == 40 * 2 * 32
    # expected 35.6 per image with standard deviation 4.4: five deviations either way
    assert 13 < counts.min() <= counts.max() < 58


@pytest.mark.parametrize("proxies", [[], [-1, -1, -1], [-1, 4]])
def test_nothing_to_learn_from(proxies):
    assert proxy_batches(np.array(proxies, dtype=np.int64), 32, 4, np.random.default_rng(0)) == []
