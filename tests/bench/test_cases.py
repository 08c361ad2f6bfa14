import numpy as np
import pytest

from fedmpi.bench.cases import Model, draw_mask, draw_trained, draw_values
from fedmpi.bench.sparse import masked_mean
from fedmpi.sparse import Mask


@pytest.mark.parametrize("density", [0.01, 0.3, 0.7])
def test_density_is_met(density):
    mask = draw_mask(1 << 18, density, 1)
    assert abs(mask.density - density) < 5 * np.sqrt(density * (1 - density) / (1 << 18)) + 2**-16
    assert mask == draw_mask(1 << 18, density, 1)
    assert mask != draw_mask(1 << 18, density, 2)


def test_all_is_all():
    assert draw_mask(100, 1.0, 0).is_full
    assert Model.vector(100).smallest_pruned(1.0).is_full


def test_a_beginning_is_drawn_like_the_whole():
    """What the server checks of the clients' values is drawn anew, and only its beginning."""
    assert draw_values(100_000, 3)[:777].tobytes() == draw_values(777, 3).tobytes()


def test_magnitude_pruning_keeps_the_largest():
    model = Model.vector(10_000)
    kept = model.smallest_pruned(0.25).to_bool()
    assert kept.sum() == 2500
    assert np.abs(model.theta[kept]).min() >= np.abs(model.theta[~kept]).max()


def test_the_oracle_of_the_mean_against_a_loop():
    masks = {0: Mask.from_bool(np.array([1, 1, 0, 0], bool)), 1: Mask.from_bool(np.array([1, 0, 1, 0], bool))}
    weights = np.array([0.25, 0.75], np.float32)
    mean, scale, held = masked_mean(4, masks, weights)
    a, b = (draw_trained(4, client).astype(float) for client in (0, 1))
    np.testing.assert_allclose(mean, [0.25 * a[0] + 0.75 * b[0], a[1], b[2], 0])
    np.testing.assert_allclose(scale, [0.25 * abs(a[0]) + 0.75 * abs(b[0]), abs(a[1]), abs(b[2]), 0])
    assert held.tolist() == [True, True, True, False]
