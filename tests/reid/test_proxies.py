"""Proxy memory: building and moving, against loops and against an autograd function that moves inside backward."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedmpi.reid.losses import inter_camera_loss, intra_camera_loss
from fedmpi.reid.proxies import ProxyMemory


def unit_rows(rng, n, dim=6):
    return functional.normalize(torch.from_numpy(rng.standard_normal((n, dim))), dim=1)


def random_clustering(seed, n=40):
    rng = np.random.default_rng(seed)
    return unit_rows(rng, n), rng.integers(-1, 5, n), rng.choice([2, 5, 9], n)


@pytest.mark.parametrize("seed", range(3))
def test_build_against_a_loop(seed):
    features, labels, camids = random_clustering(seed)
    memory = ProxyMemory.build(features, labels, camids)
    members = {}
    for i in range(len(labels)):
        if labels[i] >= 0:
            members.setdefault((camids[i], labels[i]), []).append(i)
    pairs = sorted(members)
    assert len(memory) == len(pairs)
    assert list(zip(memory.camera.tolist(), memory.cluster.tolist(), strict=True)) == pairs
    for number, pair in enumerate(pairs):
        mean = features.numpy()[members[pair]].mean(axis=0)
        np.testing.assert_allclose(memory.centres[number].numpy(), mean / np.linalg.norm(mean), atol=1e-12)
        assert memory.proxies[members[pair]].tolist() == [number] * len(members[pair])
    assert (memory.proxies[labels < 0] == -1).all()
    assert memory.proxies.dtype == np.int64


def test_build_with_outliers_only_or_without_images():
    features = torch.ones(3, 4)
    memory = ProxyMemory.build(features, np.full(3, -1), np.arange(3))
    assert len(memory) == 0
    assert memory.centres.shape == (0, 4)
    assert memory.proxies.tolist() == [-1, -1, -1]
    assert len(ProxyMemory.build(features[:0], np.empty(0, np.int64), np.empty(0, np.int64))) == 0


def test_build_takes_no_gradient_and_keeps_float32():
    features = torch.eye(4, requires_grad=True)
    memory = ProxyMemory.build(features, np.array([0, 0, 1, 1]), np.array([1, 1, 1, 1]))
    assert not memory.centres.requires_grad
    assert memory.centres.dtype == torch.float32
    assert memory.proxies.tolist() == [0, 0, 1, 1]


def test_different_lengths_are_refused():
    with pytest.raises(ValueError, match="3 features, 2 labels and 3 cameras"):
        ProxyMemory.build(torch.ones(3, 4), np.zeros(2, np.int64), np.zeros(3, np.int64))


def test_update_is_a_fifth_of_the_old_centre_and_four_of_the_new():
    memory = ProxyMemory.build(torch.eye(2), np.array([0, 1]), np.array([0, 0]))
    memory.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    expected = torch.tensor([0.2, 0.8]) / (0.2**2 + 0.8**2) ** 0.5
    torch.testing.assert_close(memory.centres, torch.stack([expected, torch.tensor([0.0, 1.0])]))


@pytest.mark.parametrize("seed", range(3))
def test_update_follows_the_batch_sample_by_sample(seed):
    memory = ProxyMemory.build(*random_clustering(seed), momentum=0.3)
    rng = np.random.default_rng(seed + 100)
    ids, batch = rng.integers(0, 4, 12), unit_rows(rng, 12)  # each proxy about three times, in mixed order
    expected = memory.centres.numpy().copy()
    for proxy, feature in zip(ids, batch.numpy(), strict=True):
        moved = 0.3 * expected[proxy] + 0.7 * feature
        expected[proxy] = moved / np.linalg.norm(moved)
    memory.update(batch, torch.from_numpy(ids))
    np.testing.assert_allclose(memory.centres.numpy(), expected, atol=1e-12)


def test_update_with_an_empty_batch_changes_nothing():
    memory = ProxyMemory.build(*random_clustering(0))
    before = memory.centres.clone()
    memory.update(torch.empty(0, 6, dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    assert torch.equal(memory.centres, before)


class MovesInBackward(torch.autograd.Function):
    """The similarity product whose backward moves the centres of one camera, as CAP describes it."""

    @staticmethod
    def forward(ctx, features, centres, own):
        ctx.save_for_backward(features, own)
        ctx.centres = centres
        return features @ centres.T

    @staticmethod
    def backward(ctx, grad):
        features, own = ctx.saved_tensors
        result = grad @ ctx.centres
        for feature, proxy in zip(features, own, strict=True):
            ctx.centres[proxy] = 0.2 * ctx.centres[proxy] + 0.8 * feature
            ctx.centres[proxy] /= ctx.centres[proxy].norm()
        return result, None, None


def test_update_after_backward_equals_update_inside_it():
    """Camera by camera, each with a memory that moves in its own backward and a snapshot of all for the other loss."""
    features, labels, camids = random_clustering(7)
    memory = ProxyMemory.build(features, labels, camids)
    picks = np.flatnonzero(memory.proxies >= 0)[:16]
    ids = torch.from_numpy(memory.proxies[picks])
    batch = unit_rows(np.random.default_rng(8), 16)

    ours = batch.clone().requires_grad_()
    loss = 0.6 * intra_camera_loss(ours, ids, memory) + 0.7 * inter_camera_loss(ours, ids, memory)
    before = memory.centres.clone()
    loss.backward()
    memory.update(ours, ids)

    theirs = batch.clone().requires_grad_()
    snapshot = ProxyMemory(before.clone(), memory.camera, memory.cluster, memory.proxies, 0.2)
    total, moving = 0.7 * inter_camera_loss(theirs, ids, snapshot), {}
    for camera in memory.camera[ids].unique():
        rows, members = memory.camera[ids] == camera, torch.nonzero(memory.camera == camera).squeeze(1)
        own = ids[rows] - members[0]  # proxies of a camera are consecutive
        moving[int(camera)] = before[members].clone()
        logits = MovesInBackward.apply(theirs[rows], moving[int(camera)], own) / 0.07
        total = total + 0.6 * functional.cross_entropy(logits, own)
    total.backward()

    torch.testing.assert_close(loss.detach(), total.detach())
    torch.testing.assert_close(ours.grad, theirs.grad)
    for camera, centres in moving.items():
        torch.testing.assert_close(memory.centres[memory.camera == camera], centres)
    assert not torch.equal(memory.centres, before)
