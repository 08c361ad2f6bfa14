"""Weights worked by hand from METHOD section 3."""

import numpy as np
import pytest

from fedmpi.federated.weighting import klaw, klpwa, normalised, praw


def test_klaw_gain_grows_with_the_divergence():
    np.testing.assert_allclose(klaw([1.0, 3.0]), [0.25, 0.75])


def test_klaw_alignment_falls_with_the_divergence():
    np.testing.assert_allclose(klaw([0.0, np.log(3.0)], sign="alignment"), [0.75, 0.25])


@pytest.mark.parametrize("values", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [-1.0, 3.0]])
def test_useless_values_give_uniform_weights(values):
    weights, uniform = normalised(values)
    assert uniform
    np.testing.assert_array_equal(weights, [0.5, 0.5])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("inverse_density", [1 / 3, 2 / 3]), ("pruned", [0.0, 1.0]), ("kept", [2 / 3, 1 / 3])],
)
def test_praw(rule, expected):
    np.testing.assert_allclose(praw([0.0, 0.5], rule=rule), expected)


@pytest.mark.parametrize("rule", ["inverse_density", "pruned", "kept"])
def test_praw_is_uniform_when_nothing_is_pruned(rule):
    np.testing.assert_allclose(praw([0.0, 0.0, 0.0, 0.0], rule=rule), [0.25] * 4)


def test_klpwa_product():
    result = klpwa(np.array([0.25, 0.75]), np.array([2 / 3, 1 / 3]))
    np.testing.assert_allclose(result.weight, [(0.25 * 2) / (0.25 * 2 + 0.75), 0.75 / (0.25 * 2 + 0.75)])
    assert not result.uniform


def test_klpwa_convex():
    result = klpwa(np.array([0.2, 0.8]), np.array([0.6, 0.4]), mix="convex", alpha=0.25)
    np.testing.assert_allclose(result.weight, [0.5, 0.5])


def test_klpwa_says_when_it_falls_back():
    result = klpwa(np.array([1.0, 0.0]), np.array([0.0, 1.0]))  # the product vanishes everywhere
    assert result.uniform
    np.testing.assert_array_equal(result.weight, [0.5, 0.5])
