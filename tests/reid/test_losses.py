"""Losses against loops and closed forms in double precision."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, rel_entr, softmax
from torch.nn import functional

from fedmpi.reid.losses import capr_loss, inter_camera_loss, intra_camera_loss, kl_divergence
from fedmpi.reid.proxies import ProxyMemory


def random_case(seed, *, clusters=6, batch=10, dim=8):
    rng = np.random.default_rng(seed)
    rows = functional.normalize(torch.from_numpy(rng.standard_normal((60, dim))), dim=1)
    memory = ProxyMemory.build(rows, rng.integers(-1, clusters, 60), rng.integers(1, 4, 60))
    picks = rng.permutation(np.flatnonzero(memory.proxies >= 0))[:batch]
    features = functional.normalize(torch.from_numpy(rng.standard_normal((batch, dim))), dim=1)
    return features, torch.from_numpy(memory.proxies[picks]), memory


def camera_means(losses, cameras):
    return sum(np.mean([loss for loss, c in zip(losses, cameras, strict=True) if c == camera]) for camera in {*cameras})


def loop_intra(features, ids, memory, temperature):
    camera, losses = memory.camera.tolist(), []
    for f, own in zip(features.numpy(), ids.tolist(), strict=True):
        s = {v: f @ memory.centres[v].numpy() / temperature for v in range(len(memory)) if camera[v] == camera[own]}
        losses.append(logsumexp(list(s.values())) - s[own])
    return camera_means(losses, [camera[i] for i in ids.tolist()])


def loop_inter(features, ids, memory, temperature, negatives):
    camera, cluster, losses = memory.camera.tolist(), memory.cluster.tolist(), []
    for f, own in zip(features.numpy(), ids.tolist(), strict=True):
        s = memory.centres.numpy() @ f / temperature
        positives = [v for v in range(len(s)) if cluster[v] == cluster[own]]
        others = sorted((s[v] for v in range(len(s)) if cluster[v] != cluster[own]), reverse=True)[:negatives]
        bottom = logsumexp([*s[positives], *others])
        losses.append(np.mean([bottom - s[u] for u in positives]))
    return camera_means(losses, [camera[i] for i in ids.tolist()])


@pytest.mark.parametrize("seed", range(4))
def test_intra_camera_loss_against_a_loop(seed):
    case = random_case(seed)
    assert float(intra_camera_loss(*case, temperature=0.2)) == pytest.approx(loop_intra(*case, 0.2), rel=1e-10)


@pytest.mark.parametrize("negatives", [1, 3, 50])
@pytest.mark.parametrize("seed", range(3))
def test_inter_camera_loss_against_a_loop(seed, negatives):
    case = random_case(seed)
    ours = float(inter_camera_loss(*case, temperature=0.2, negatives=negatives))
    assert ours == pytest.approx(loop_inter(*case, 0.2, negatives), rel=1e-10)


def test_more_negatives_cost_more():
    case = random_case(0)
    losses = [float(inter_camera_loss(*case, negatives=count)) for count in (1, 3, 50)]
    assert losses[0] < losses[1] < losses[2]


def test_capr_loss_is_the_weighted_sum_with_fedcaprs_weights():
    case = random_case(1)
    expected = 0.6 * loop_intra(*case, 0.07) + 0.7 * loop_inter(*case, 0.07, 50)
    assert float(capr_loss(*case)) == pytest.approx(expected, rel=1e-10)
    other = capr_loss(*case, temperature=0.3, intra=2.0, inter=0.0, negatives=4)
    assert float(other) == pytest.approx(2 * loop_intra(*case, 0.3), rel=1e-10)


def test_closed_form_of_two_opposite_proxies():
    """Centres e and -e in two clusters of one camera; a sample at e loses log(1 + exp(-2 / T)) in both losses."""
    memory = ProxyMemory.build(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double(), np.array([0, 1]), np.array([4, 4]))
    sample, ids = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([0])
    expected = math.log1p(math.exp(-2 / 0.5))
    assert float(intra_camera_loss(sample, ids, memory, temperature=0.5)) == pytest.approx(expected)
    assert float(inter_camera_loss(sample, ids, memory, temperature=0.5)) == pytest.approx(expected)


def test_a_lone_proxy_costs_nothing():
    memory = ProxyMemory.build(torch.eye(2).double()[:1], np.array([0]), np.array([1]))
    sample = functional.normalize(torch.tensor([[0.3, 0.4]]).double(), dim=1)
    assert float(capr_loss(sample, torch.tensor([0]), memory)) == pytest.approx(0, abs=1e-12)


def test_repeating_a_cameras_samples_changes_nothing_but_a_second_camera_adds():
    features, ids, memory = random_case(2)
    camera = memory.camera[ids]
    first, second = camera == camera[0], camera == camera[camera != camera[0]][0]
    alone = [float(capr_loss(features[rows], ids[rows], memory)) for rows in (first, second)]
    twice = torch.cat([torch.nonzero(first), torch.nonzero(first), torch.nonzero(second)]).squeeze(1)
    assert float(capr_loss(features[twice], ids[twice], memory)) == pytest.approx(sum(alone))


def test_gradients():
    features, ids, memory = random_case(3, batch=5)
    assert torch.autograd.gradcheck(
        lambda f: capr_loss(f, ids, memory, temperature=0.5, negatives=4), features.requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_similarities_stay_finite(dtype):
    features, ids, memory = random_case(4)
    memory.centres = memory.centres.to(dtype)
    sample = features.to(dtype).requires_grad_()
    loss = capr_loss(sample, ids, memory, temperature=1e-4)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(sample.grad).all())


def test_half_precision_features_are_compared_in_float32():
    features, ids, memory = random_case(5)
    memory.centres = memory.centres.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = capr_loss(features.float(), ids, memory)
    torch.testing.assert_close(loss, capr_loss(features.float(), ids, memory), rtol=0, atol=0)


def embeddings(seed, batch, dim, correlation):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((batch, dim))
    other = correlation * z + math.sqrt(1 - correlation**2) * rng.standard_normal((batch, dim))
    return torch.from_numpy(z), torch.from_numpy(other)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("features", ["embedding", "normalized"])
def test_kl_against_scipy(features, temperature):
    reference, z = embeddings(0, 7, 12, 0.6)
    rows = [reference.numpy(), z.numpy()]
    if features == "normalized":
        rows = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]
    p, q = (softmax(row / temperature, axis=1) for row in rows)
    expected = rel_entr(p, q).sum(axis=1).mean()
    ours = kl_divergence(reference, z, temperature=temperature, features=features)
    assert float(ours) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_kl_of_unit_variance_embeddings_is_about_one_minus_cosine(correlation):
    reference, z = embeddings(1, 64, 2048, correlation)
    cosine = float(functional.cosine_similarity(reference, z).mean())
    assert float(kl_divergence(reference, z)) == pytest.approx(1 - cosine, rel=0.1)
    cooled = float(kl_divergence(reference, z, temperature=2.0))
    assert cooled == pytest.approx((1 - cosine) / 4, rel=0.05)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_kl_of_normalized_features_vanishes_with_the_dimension(temperature):
    reference, z = embeddings(2, 64, 2048, 0.7)
    cosine = float(functional.cosine_similarity(reference, z).mean())
    ours = float(kl_divergence(reference, z, temperature=temperature, features="normalized"))
    assert ours == pytest.approx((1 - cosine) / (2048 * temperature**2), rel=0.05)


def test_kl_normalized_ignores_the_scale():
    reference, z = embeddings(3, 5, 16, 0.7)
    scaled = kl_divergence(5 * reference, 0.1 * z, features="normalized")
    torch.testing.assert_close(scaled, kl_divergence(reference, z, features="normalized"))


def test_kl_is_zero_for_equal_embeddings_and_directed():
    reference, z = embeddings(4, 5, 16, 0.2)
    assert float(kl_divergence(z, z)) == pytest.approx(0, abs=1e-12)
    assert abs(float(kl_divergence(reference, z) - kl_divergence(z, reference))) > 1e-3


def test_kl_gradient_reaches_the_trained_embedding_only():
    """d KL(p || q) / dz = (q - p) / (T B)."""
    reference, z = (rows.requires_grad_() for rows in embeddings(5, 4, 9, 0.3))
    kl_divergence(reference, z, temperature=2.0).backward()
    assert reference.grad is None
    p, q = (functional.softmax(rows.detach() / 2, dim=1) for rows in (reference, z))
    torch.testing.assert_close(z.grad, (q - p) / 8)


def test_kl_of_extreme_embeddings_stays_finite():
    z = torch.tensor([[1e4, -1e4, 0.0]])
    assert float(kl_divergence(-z, z)) == pytest.approx(2e4)


def test_kl_refuses_what_it_cannot_compare():
    z = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        kl_divergence(z, z[:2])
    with pytest.raises(ValueError, match="B > 0"):
        kl_divergence(z[:0], z[:0])
    with pytest.raises(ValueError, match="'logits'"):
        kl_divergence(z, z, features="logits")
