"""k-reciprocal Jaccard distance and DBSCAN, against sets and loops written from the definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from fedmpi.errors import Stopped, TrainingError
from fedmpi.reid import clustering
from fedmpi.reid.clustering import cluster, jaccard_distance, renumber

# Exact in floating point, of norm 1: their distances are exact, so ties are real ties.
CORNERS = np.array(np.meshgrid(*[[-0.5, 0.5]] * 4)).reshape(4, -1).T.astype(np.float32)


def neighbour_lists(features):
    """Return all images by (itself first, distance, index), for each image."""
    x = features.astype(np.float64)
    n = len(x)
    distance = [[2 - 2 * float(np.dot(x[i], x[j])) for j in range(n)] for i in range(n)]
    return distance, [sorted(range(n), key=lambda j, i=i: (j != i, distance[i][j], j)) for i in range(n)]


def loop_jaccard(features, k1, k2):
    """Follow the definition image by image, with Python sets and dictionaries."""
    n = len(features)
    distance, ranked = neighbour_lists(features)

    def reciprocal(i, k):
        return {j for j in ranked[i][:k] if i in ranked[j][:k]}

    half = min(k1, round(k1 / 2) + 1)
    rows = []
    for i in range(n):
        core = reciprocal(i, k1)
        members = set(core)
        for j in core:
            candidate = reciprocal(j, half)
            if 3 * len(candidate & core) > 2 * len(candidate):
                members |= candidate
        weight = {j: math.exp(-distance[i][j]) for j in members}
        total = sum(weight.values())
        rows.append({j: w / total for j, w in weight.items()})
    expanded = []
    for i in range(n):
        mean = dict.fromkeys(range(n), 0.0)
        near = ranked[i][:k2]
        for j in near:
            for column, value in rows[j].items():
                mean[column] += value / len(near)
        expanded.append(mean)
    result = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            shared = sum(min(expanded[i][column], expanded[j][column]) for column in range(n))
            result[i, j] = 1 - shared / (2 - shared)
    return result


def blobs(seed, identities, copies, *, noise=0.2, dim=16):
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.standard_normal((identities, dim)), copies, axis=0)
    rows = centres + noise * rng.standard_normal(centres.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 3), (5, 1), (1, 1), (2, 9), (100, 100)])
@pytest.mark.parametrize("seed", range(2))
def test_distance_against_the_definition(seed, k1, k2):
    features = blobs(seed, 6, 7, noise=1.0)
    exact, _ = neighbour_lists(features)
    gaps = np.diff(np.sort(np.array(exact), axis=1)[:, 1:], axis=1)
    assert gaps.min() > 1e-6  # so that float32 ranks as float64 does
    ours = jaccard_distance(features, k1, k2)
    np.testing.assert_allclose(ours, loop_jaccard(features, k1, k2), atol=2e-6)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, ours.T)
    assert not ours.diagonal().any()
    assert ours.min() >= 0
    assert ours.max() <= 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, len(CORNERS) - 1), max_size=24), st.integers(1, 12), st.integers(1, 5))
def test_ties_and_copies_against_the_definition(corners, k1, k2):
    features = CORNERS[corners].reshape(-1, 4)
    np.testing.assert_allclose(jaccard_distance(features, k1, k2), loop_jaccard(features, k1, k2), atol=2e-6)


def test_more_images_than_neighbours_tie_at_the_cut():
    """30 copies of one image, lists of 20: the lower indices win, and which win is visible in the distances."""
    features = np.repeat(CORNERS[:1], 30, axis=0)
    np.testing.assert_allclose(jaccard_distance(features, 20, 6), loop_jaccard(features, 20, 6), atol=2e-6)


def test_expansion_threshold_is_more_than_two_thirds():
    """Search small random cases for both sides of the threshold, so that the rule is really used by the tests here."""
    on_threshold = 0
    for seed in range(20):
        features = blobs(seed, 4, 6, noise=1.0)
        _, ranked = neighbour_lists(features)
        sets = {k: [{j for j in ranked[i][:k] if i in ranked[j][:k]} for i in range(len(features))] for k in (7, 5)}
        on_threshold += sum(3 * len(sets[5][j] & core) == 2 * len(sets[5][j]) for core in sets[7] for j in core)
        np.testing.assert_allclose(jaccard_distance(features, 7, 3), loop_jaccard(features, 7, 3), atol=2e-6)
    assert on_threshold > 0


def test_blocks_do_not_change_the_result(monkeypatch):
    features = CORNERS[np.random.default_rng(0).integers(0, 16, 70)]
    whole, labels = jaccard_distance(features, 9, 4), cluster(features, k1=9, k2=4)
    monkeypatch.setattr(clustering, "_BLOCK_ENTRIES", 300)
    assert np.array_equal(jaccard_distance(features, 9, 4), whole)
    assert np.array_equal(cluster(features, k1=9, k2=4), labels)


def test_tensors_and_arrays_are_equal():
    features = blobs(3, 5, 6)
    assert np.array_equal(jaccard_distance(torch.from_numpy(features).requires_grad_()), jaccard_distance(features))


def test_separated_people_are_found_whatever_their_order():
    features = blobs(1, 8, 9)
    truth = np.repeat(np.arange(8), 9)
    order = np.random.default_rng(1).permutation(72)
    assert np.array_equal(cluster(features), truth)
    assert np.array_equal(cluster(features[order]), renumber(truth[order]))


@pytest.mark.parametrize(("stranger", "adopted"), [(99, True), (104, True), (100, False), (103, False)])
def test_a_stranger_is_an_outlier_unless_query_expansion_adopts_it(stranger, adopted):
    """With k2 = 6 a row of V is the mean over the image and 5 near ones: when those are one person, it joins them."""
    people = np.repeat(np.arange(5), 25)
    features = np.concatenate([blobs(stranger, 1, 1), blobs(1, 5, 25)])
    near = {int(people[j - 1]) for j in neighbour_lists(features)[1][0][1:6]}
    assert (len(near) == 1) == adopted
    assert cluster(features, k2=1)[0] == -1
    labels = cluster(features, k2=6)
    assert np.array_equal(renumber(labels[1:]), people)
    assert labels[0] == (labels[1:][people == near.pop()][0] if adopted else -1)


@pytest.mark.parametrize("eps", [0.2, 0.3, 0.5])
def test_labels_equal_dbscan_on_the_dense_definition(eps):
    features = blobs(4, 8, 8, noise=0.8)
    dense = np.maximum(loop_jaccard(features, 10, 3), 0)
    assert np.abs(dense - eps).min() > 1e-5
    expected = DBSCAN(eps=eps, min_samples=3, metric="precomputed").fit_predict(dense)
    assert 0 < (expected >= 0).sum() < len(expected)
    ours = cluster(features, k1=10, k2=3, eps=eps, min_samples=3)
    assert ours.dtype == np.int64
    assert np.array_equal(ours, renumber(expected))


def test_copies_are_neighbours_although_their_distance_is_zero():
    features = np.repeat(CORNERS[[0, 5]], 4, axis=0)
    assert cluster(features, k1=4, k2=1, eps=0.1).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_few_images():
    assert cluster(np.empty((0, 8), np.float32)).shape == (0,)
    assert cluster(np.empty((0, 8), np.float32)).dtype == np.int64
    assert jaccard_distance(np.empty((0, 8), np.float32)).shape == (0, 0)
    assert cluster(CORNERS[:1]).tolist() == [-1]
    assert cluster(CORNERS[:1], min_samples=1).tolist() == [0]
    assert jaccard_distance(CORNERS[:1]).tolist() == [[0.0]]
    assert cluster(np.repeat(CORNERS[:1], 3, axis=0)).tolist() == [-1, -1, -1]


def test_renumber():
    assert renumber([5, -1, 2, 5, -7, 0, 2]).tolist() == [0, -1, 1, 0, -1, 2, 1]
    assert renumber([]).tolist() == []


def test_diverged_features_are_named():
    features = blobs(0, 2, 3)
    features[4, 0] = np.inf
    with pytest.raises(TrainingError, match="features of 1 of 6 images are not finite"):
        cluster(features)


@pytest.mark.parametrize(("k1", "k2"), [(0, 6), (20, 0)])
def test_bad_arguments_are_named(k1, k2):
    with pytest.raises(ValueError, match=f"k1 = {k1}, k2 = {k2}"):
        jaccard_distance(CORNERS, k1, k2)
    with pytest.raises(ValueError, match=r"\(16,\)"):
        jaccard_distance(CORNERS[:, 0])


def test_may_be_interrupted_after_every_block(monkeypatch):
    monkeypatch.setattr(clustering, "_BLOCK_ENTRIES", 1)
    looks = []

    def interrupt():
        looks.append(0)
        if len(looks) == 3:
            raise Stopped("now")

    with pytest.raises(Stopped, match="now"):
        cluster(CORNERS, interrupt=interrupt)
    assert len(looks) == 3
    cluster(CORNERS, interrupt=lambda: looks.append(0))
    assert len(looks) == 3 + 16  # a block a row
