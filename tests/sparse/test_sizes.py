"""Bytes against the entropy of what they say; the numbers are those of docs/wire-format.md, "What it costs"."""

from math import lgamma, log

import numpy as np
import pytest

from fedmpi.sparse import Head, Kind, Layout, Mask, MaskMode, encode_head, encode_mask

SHAPES = [
    (64, 3, 7, 7),
    (64,),
    (64,),
    *[(128, 64, 3, 3), (128,), (128,)] * 2,
    *[(256, 128, 3, 3), (256,)] * 3,
    (512, 900),
]
LAYOUT = Layout(tuple(f"t{i}" for i in range(len(SHAPES))), tuple(SHAPES))


def entropy(count, size):
    """Bytes of log2(size choose count)."""
    return (lgamma(size + 1) - lgamma(count + 1) - lgamma(size - count + 1)) / log(2) / 8


def random_mask(density, seed=0):
    kept = np.random.default_rng(seed).random(LAYOUT.size) < density
    return Mask.from_bool(kept)


def message_bytes(mask, previous=None, epochs=(0, 1)):
    head, sections = encode_head(Head(Kind.UPDATE, 1, 0, *epochs, mask), LAYOUT, previous)
    assert head.size == sections.total
    return head.size + 4 * mask.count()


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.65, 0.7])
def test_independent_mask_with_values(density):
    mask = random_mask(density)
    bound = entropy(mask.count(), mask.size) + 4 * mask.count()
    assert message_bytes(mask) / bound <= 1.005


@pytest.mark.parametrize("density", [0.05, 0.1, 0.3, 0.5, 0.7])
def test_magnitude_mask_is_below_the_entropy_of_its_density(density):
    """Layers of different scale under one threshold, as global magnitude pruning makes them."""
    rng = np.random.default_rng(7)
    scores = np.empty(LAYOUT.size)
    for tensor in LAYOUT.tensors:
        size = tensor.slice.stop - tensor.slice.start
        scores[tensor.slice] = (
            np.abs(rng.laplace(size=size)) * np.exp(rng.normal(0, 0.7)) if tensor.prunable else np.inf
        )
    mask = Mask.from_bool(scores >= np.quantile(scores, 1 - density))
    bound = entropy(mask.count(), mask.size) + 4 * mask.count()
    assert message_bytes(mask) / bound <= 1.0


@pytest.mark.parametrize("density", [0.1, 0.3, 0.6])
def test_unchanged_mask(density):
    mask = random_mask(density)
    assert message_bytes(mask, mask, (3, 3)) - 4 * mask.count() == 128


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("died", [0.01, 0.05, 0.1, 0.2, 0.3])
def test_monotone_change(density, died):
    before = random_mask(density)
    after = before & random_mask(1 - died, seed=1)
    mode, section = encode_mask(after, before, LAYOUT)
    assert mode == MaskMode.SUBSET
    assert len(section) / entropy(before.count() - after.count(), before.count()) <= 1.02


def test_flips():
    before = random_mask(0.4)
    after = before.symmetric_difference(random_mask(0.02, seed=1))
    mode, section = encode_mask(after, before, LAYOUT)
    assert mode == MaskMode.XOR
    flips = before.symmetric_difference(after).count()
    assert len(section) / entropy(flips, before.size) <= 1.02
