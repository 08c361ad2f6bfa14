"""Every method through whole rounds with the tiny network, and the example of docs/add-a-method.md."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.spatial.distance
import torch

import fedmpi
from fedmpi.comm import Direction
from fedmpi.config import load_config, method_names
from fedmpi.errors import ConfigError
from fedmpi.federated.client import Client, Update
from fedmpi.federated.composition import build
from fedmpi.federated.round import first_state, run_round
from fedmpi.federated.weighting import Cdw, Evidence
from fedmpi.sparse import Mask, MaskMode
from tests import mpi

pytestmark = pytest.mark.usefixtures("tiny_net")

ROOT = Path(__file__).parents[2]
DENSE = ("fedavg", "fedprox", "fedpav", "fedcapr")
SPARSE = ("fedklpr", "lotteryfl", "subfedavg")


def test_fedavg_on_a_convex_problem_is_gradient_descent_on_the_weighted_sum(world, monkeypatch):
    """f_k = 1/2 sum_i a_ki (x_i - c_ki)^2, one local step each: x_t = x* + (1 - lr a)^t (x_0 - x*), a = sum w_k a_k."""
    built, lr, rounds = world("method=fedavg", "evaluation.every=99", "federation.rounds=50"), 0.1, 20
    size, rng = built.learner.layout.size, np.random.default_rng(0)
    curvature, centre = rng.uniform(0.5, 2.0, (2, size)), rng.standard_normal((2, size))
    images = np.array([30.0, 10.0])

    def train(client, state, received, round, log, room=None):
        c, theta = client.index, received.theta.astype(np.float64)
        values = (theta - lr * curvature[c] * (theta - centre[c])).astype(np.float32)
        log.values["seconds_encode"] = 0.0
        return state, Update(Mask.full(size), values, received.buffers, 0.0, int(images[c]), 1.0)

    monkeypatch.setattr(Client, "train", train)
    state = first_state(built)
    start = state.server.theta.astype(np.float64)
    for number in range(rounds):
        state, _ = run_round(built, state, number)
    w = (images / images.sum())[:, None]
    a = (w * curvature).sum(axis=0)
    optimum = (w * curvature * centre).sum(axis=0) / a
    expected = optimum + (1 - lr * a) ** rounds * (start - optimum)
    np.testing.assert_allclose(state.server.theta, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - start).mean() > 0.1


@pytest.mark.parametrize("method", DENSE)
def test_dense_methods_send_everything_without_a_mask_both_ways(world, method):
    built = world(f"method={method}", "local.epochs=2", "local.last_round_epochs=2", "wire.values=raw")
    state, layout = first_state(built), built.learner.layout
    for number in range(2):
        state, result = run_round(built, state, number)
        sent = [m for m in result.messages if m.direction != Direction.EVALUATE]
        assert sorted((m.client, m.direction) for m in sent) == sorted(
            (c, d) for c in (0, 1) for d in (Direction.DOWN, Direction.UP)
        )
        for m in sent:
            assert (m.values, m.mask, m.mask_mode) == (4 * layout.size, 0, MaskMode.NONE)
            assert m.total == m.dense
        assert (result.clients["density"] == 1).all()
        regularised = method == "fedprox" or (method == "fedcapr" and number == 1)
        assert ((result.clients["loss_kl"] > 0) == regularised).all()


@pytest.mark.parametrize("method", SPARSE)
def test_sparse_methods_pay_for_their_masks_and_send_less(world, monkeypatch, method):
    from fedmpi.federated.probe import Probe

    monkeypatch.setattr(Probe, "measure", lambda *_: 0.9)
    built = world(f"method={method}", "local.epochs=2", "local.last_round_epochs=2")
    state, _ = run_round(built, first_state(built), 0)
    state, _ = run_round(built, state, 1)
    _, result = run_round(built, state, 2)
    up = [m for m in result.messages if m.direction is Direction.UP]
    assert sum(m.mask for m in up) > 0
    for m in up:
        assert m.values == 4 * state.clients[m.client].history.mask.count() or m.mask > 0
        assert m.values < 4 * built.learner.layout.size
    assert (result.clients["density"] < 1).all()


def test_lotteryfl_trains_the_initial_weights_behind_the_new_mask(world, monkeypatch):
    from fedmpi.federated import client as module
    from fedmpi.federated.probe import Probe

    monkeypatch.setattr(Probe, "measure", lambda *_: 0.9)
    built = world("method=lotteryfl", "federation.rounds=5")
    initial = built.learner.read()[0].copy()
    state, _ = run_round(built, first_state(built), 0)
    begun = []
    original = module.train_local

    def train_local(model, *rest, **options):
        begun.append(built.learner.layout.flatten(model)[0])
        return original(model, *rest, **options)

    monkeypatch.setattr(module, "train_local", train_local)
    after, _ = run_round(built, state, 1)
    for c, theta in enumerate(begun):
        kept = after.clients[c].history.mask.to_bool()
        assert kept.sum() < kept.size
        np.testing.assert_array_equal(theta, initial * kept)


def test_cdw_by_scipy():
    rng = np.random.default_rng(1)
    pairs = [rng.standard_normal((2, 6, 16)) for _ in range(3)]
    distances = [Cdw().distance(torch.from_numpy(a), torch.from_numpy(b)) for a, b in pairs]
    expected = [np.mean([scipy.spatial.distance.cosine(*rows) for rows in zip(a, b, strict=True)]) for a, b in pairs]
    np.testing.assert_allclose(distances, expected, rtol=1e-10)
    found = Cdw().weigh(Evidence(np.array(distances), np.ones(3), np.zeros(3)))
    np.testing.assert_allclose(found.weight, np.array(expected) / np.sum(expected))
    assert not found.uniform
    same = torch.from_numpy(pairs[0][0]).float() * 1.7
    assert 0 <= Cdw().distance(same, same / 3) < 1e-6


def test_klaw_measured_by_cosine_is_cdw(tiny_config):
    rng = np.random.default_rng(2)
    after, before = (torch.from_numpy(rng.standard_normal((5, 16))) for _ in range(2))
    klaw = build(tiny_config("klaw.measure=cosine", "praw.enabled=false")).weighting
    assert klaw.distance(after, before) == Cdw().distance(after, before)
    evidence = Evidence(np.array([0.3, 0.1]), np.array([1.0, 9.0]), np.array([0.5, 0.0]))
    np.testing.assert_allclose(klaw.weigh(evidence).weight, Cdw().weigh(evidence).weight)


@pytest.mark.parametrize(
    ("method", "overrides", "expected"),
    [
        ("fedavg", (), [1 / 4, 3 / 4]),
        ("fedprox", (), [1 / 4, 3 / 4]),
        ("fedpav", (), [1 / 4, 3 / 4]),
        ("fedpav", ("fedpav.weights=cdw",), [2 / 3, 1 / 3]),
        ("fedcapr", (), [2 / 3, 1 / 3]),
        ("lotteryfl", (), [1 / 2, 1 / 2]),
        ("subfedavg", (), [1 / 2, 1 / 2]),
    ],
)
def test_weights_of_the_methods(tiny_config, method, overrides, expected):
    evidence = Evidence(np.array([0.2, 0.1]), np.array([10.0, 30.0]), np.array([0.5, 0.0]))
    weighting = build(tiny_config(f"method={method}", *overrides)).weighting
    np.testing.assert_allclose(weighting.weigh(evidence).weight, expected)


class TestKey:
    def test_another_method_turns_the_switches_off(self):
        config = load_config("quickstart", ["method=fedcapr"])
        assert not any(getattr(config, name).enabled for name in ("kll", "klaw", "praw", "sas", "pruning", "crr"))
        assert config.pruning.step == load_config().pruning.step  # stated in the file, and without effect
        assert config.warnings() == ()

    def test_turning_one_on_beside_it_is_refused_where_it_was_written(self, tmp_path):
        file = tmp_path / "both.yaml"
        file.write_text("method: fedavg\npruning:\n  enabled: true\n")
        with pytest.raises(ConfigError, match=r"both\.yaml:3:12: pruning\.enabled: is a part of method fedklpr, but"):
            load_config(file)
        with pytest.raises(ConfigError, match=r"^--set crr\.enabled=true: is a part of method fedklpr"):
            load_config("quickstart", ["method=fedprox", "crr.enabled=true"])

    def test_an_unknown_one_is_answered_with_all(self):
        with pytest.raises(
            ConfigError, match=r"must be one of .*fedklpr.*subfedavg, got 'fedklp'; did you mean 'fedklpr'"
        ):
            load_config("quickstart", ["method=fedklp"])


def test_every_method_builds(tiny_config):
    assert {*DENSE, *SPARSE} <= set(method_names())
    for name in method_names():
        build(tiny_config(f"method={name}"))


@pytest.mark.slow
def test_the_documented_example_is_a_method(tmp_path):
    """As the page says: one file in the package, and nothing else."""
    page = (ROOT / "docs" / "add-a-method.md").read_text()
    name, text = re.search(r"<!-- file: (\w+)\.py -->\n```python\n(.*?)```", page, re.DOTALL).groups()
    assert len(text.splitlines()) < 65
    shutil.copytree(Path(fedmpi.__file__).parent, tmp_path / "fedmpi", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fedmpi" / "federated" / "methods" / f"{name}.py").write_text(text)
    from tests.tiny import write_config

    argv = [tmp_path / "tests" / "driver.py", "--", "train", write_config(tmp_path), "--out", tmp_path / "out"]
    changes = [f"method={name}", "federation.rounds=3", "pruning.target=0.4"]
    job = mpi.succeed(
        None,
        [*argv, *(word for change in changes for word in ("--set", change))],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
    )
    assert name in job.out
    from fedmpi.record import open_run

    with open_run(tmp_path / "out" / "run.h5") as run:
        density, images = run["clients/density"], run["clients/train_images"]
        np.testing.assert_allclose(density[[0, 1, 2]], [[1, 1], [0.6, 0.6], [0.6, 0.6]], atol=0.01)
        roots = np.sqrt(images[0])
        np.testing.assert_allclose(run["clients/weight"][0], roots / roots.sum())
        assert (run["clients/loss_kl"][0] == 0).all()
        assert (run["clients/loss_kl"][1] > 0).all()
