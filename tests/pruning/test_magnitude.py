"""Magnitude pruning against a full stable sort, which knows nothing of thresholds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.pruning import density, prune

SLICES = [slice(0, 40), slice(45, 145), slice(150, 151)]
SIZE = 160


def sorted_oracle(theta, mask, groups, step, target):
    result = mask.copy()
    for group in groups:
        members = [i for s in group for i in range(s.start, s.stop)]
        alive = sorted((i for i in members if mask[i]), key=lambda i: (abs(theta[i]), i))
        keep_at_least = len(members) - int(target * len(members))
        count = max(0, min(int(step * len(alive)), len(alive) - keep_at_least))
        result[alive[:count]] = False
    return result


@given(
    seed=st.integers(0, 2**32 - 1),
    step=st.floats(0.01, 0.9),
    target=st.floats(0.05, 0.95),
    scope=st.sampled_from(["layer", "global"]),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_removes_exactly_the_smallest(seed, step, target, scope, levels):
    rng = np.random.default_rng(seed)
    theta = (rng.integers(-levels, levels, SIZE) / levels).astype(np.float32)  # few levels: many ties
    mask = np.ones(SIZE, bool)
    mask[rng.integers(0, 40, 5)] = False
    groups = [[s] for s in SLICES] if scope == "layer" else [SLICES]
    pruned = prune(theta, mask, SLICES, step=step, target=target, scope=scope)
    np.testing.assert_array_equal(pruned, sorted_oracle(theta, mask, groups, step, target))
    assert pruned[40:45].all()  # what is not prunable stays
    assert not (pruned & ~mask).any()  # nothing comes back


def test_steps_reach_the_target_and_stop():
    theta = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    mask, whole = np.ones(1000, bool), [slice(0, 1000)]
    counts = []
    for _ in range(20):
        mask = prune(theta, mask, whole, step=0.05, target=0.5)
        counts.append(int(mask.sum()))
    assert counts[:3] == [950, 903, 858]  # 1000 - 50; 950 - 47; 903 - 45
    assert counts[-1] == 500
    assert density(mask, whole) == 0.5


def test_mean_density_of_the_papers_schedule():
    """METHOD section 4: twenty rounds of 5 % give a mean density of 0.61 to 0.64."""
    theta = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    mask, whole = np.ones(theta.size, bool), [slice(0, theta.size)]
    densities = []
    for _ in range(20):
        mask = prune(theta, mask, whole, step=0.05, target=0.5)
        densities.append(density(mask, whole))
    assert 0.60 < np.mean(densities) < 0.65


def test_nothing_prunable():
    theta, mask = np.zeros(3, np.float32), np.ones(3, bool)
    assert prune(theta, mask, [], step=0.5, target=0.5, scope="global").all()
    assert density(mask, []) == 1.0


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_input_is_not_modified(scope):
    theta, mask = np.arange(10, dtype=np.float32), np.ones(10, bool)
    prune(theta, mask, [slice(0, 10)], step=0.5, target=0.5, scope=scope)
    assert mask.all()
