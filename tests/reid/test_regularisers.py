"""Regularisers against formulas in NumPy and SciPy, and differences of the loss."""

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from scipy.special import softmax

from fedmpi.reid.features import Viewing
from fedmpi.reid.regularisers import KL, Batch, Cosine, Proximal
from fedmpi.reid.training import freeze
from tests.tiny import TinyNet

VIEWING = Viewing(height=32, width=16, batch_size=64, workers=0, device=torch.device("cpu"))


@pytest.fixture
def batch() -> Batch:
    """Two networks that differ, in float64 where a difference is to be taken."""
    generator = torch.Generator().manual_seed(3)
    model = TinyNet().double().eval()
    teacher = freeze(model)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    pixels = torch.randn(5, 3, 32, 16, generator=generator, dtype=torch.float64)
    return Batch(model, teacher, pixels, model(pixels), VIEWING)


def flat(model) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters() if p.requires_grad])


class TestProximal:
    def test_value_and_gradient_are_those_of_half_the_squared_distance(self, batch):
        for parameter in batch.teacher.parameters():
            assert not parameter.requires_grad
        trained = [(n, p) for n, p in batch.model.named_parameters() if p.requires_grad]
        theirs = dict(batch.teacher.named_parameters())
        apart = np.concatenate([(p.detach() - theirs[n]).numpy().ravel() for n, p in trained])
        penalty = Proximal(0.5).penalty(batch)
        penalty.backward()
        assert float(penalty.detach()) == pytest.approx(0.5 * np.linalg.norm(apart) ** 2, rel=1e-12)
        gradient = np.concatenate([p.grad.numpy().ravel() for _, p in trained])
        np.testing.assert_allclose(gradient, apart, rtol=1e-12)

    def test_gradient_by_differences(self, batch):
        penalty = Proximal(0.5).penalty(batch)
        penalty.backward()
        weight = batch.model.linear.weight
        for place, h in (((0, 0), 1e-4), ((3, 7), 1e-4)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[place] += sign * h
                values.append(float(Proximal(0.5).penalty(batch).detach()))
                with torch.no_grad():
                    weight[place] -= sign * h
            assert (values[0] - values[1]) / (2 * h) == pytest.approx(float(weight.grad[place]), rel=1e-6)

    def test_frozen_parameters_do_not_count(self, batch):
        before = float(Proximal(1.0).penalty(batch).detach())
        batch.model.neck.bias.data += 100
        assert float(Proximal(1.0).penalty(batch).detach()) == before


class TestCosine:
    def test_mean_cosine_distance_by_scipy(self, batch):
        reference = batch.teacher(batch.pixels).numpy()
        rows = zip(batch.z.detach().numpy(), reference, strict=True)
        expected = np.mean([scipy.spatial.distance.cosine(a, b) for a, b in rows])
        assert expected > 1e-4
        assert float(Cosine(0.13, 1).penalty(batch).detach()) == pytest.approx(expected, rel=1e-5)

    def test_the_teacher_learns_nothing(self, batch):
        Cosine(0.13, 1).penalty(batch).backward()
        assert all(p.grad is None for p in batch.teacher.parameters())
        assert batch.model.linear.weight.grad.abs().sum() > 0


class TestKL:
    @pytest.mark.parametrize(("features", "temperature"), [("embedding", 1.0), ("embedding", 3.0), ("normalized", 0.2)])
    def test_received_against_local(self, batch, features, temperature):
        pair = batch.teacher(batch.pixels).numpy(), batch.z.detach().numpy()
        if features == "normalized":
            pair = tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in pair)
        p, q = (softmax(x / temperature, axis=1) for x in pair)
        expected = (p * np.log(p / q)).sum(axis=1).mean()
        found = float(KL(0.13, 1, temperature, features).penalty(batch).detach())
        assert found == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("cosine", [0.5, 0.9])
    def test_magnitude_of_both_kinds_of_features(self, cosine):
        """METHOD section 2: about 1 - cos for entries of unit variance, (1 - cos) / D for normalised ones, at T = 1."""
        dim, rows = 2048, 200
        rng = np.random.default_rng(0)
        first = rng.standard_normal((rows, dim))
        second = cosine * first + np.sqrt(1 - cosine**2) * rng.standard_normal((rows, dim))
        found = {}
        for features in ("embedding", "normalized"):
            teacher = torch.nn.Identity()
            seen = Batch(teacher, teacher, torch.from_numpy(first), torch.from_numpy(second), VIEWING)
            found[features] = float(KL(1.0, 0, 1.0, features).penalty(seen))
        assert found["embedding"] == pytest.approx(1 - cosine, rel=0.1)
        assert found["normalized"] == pytest.approx((1 - cosine) / dim, rel=0.1)
