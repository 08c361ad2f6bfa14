import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmpi.errors import DataError, TrainingError
from fedmpi.federated.composition import build
from fedmpi.reid import regularisers, training
from fedmpi.reid.features import Viewing
from fedmpi.reid.images import ImageList, MemoryPixels
from fedmpi.reid.losses import kl_divergence
from fedmpi.reid.training import Task, freeze, learning_rate, train_local
from tests.tiny import TinyNet

VIEWING = Viewing(height=32, width=16, batch_size=64, workers=0, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def people(identities: int = 6, cameras: int = 2, shots: int = 4) -> ImageList:
    """Return people who are plain colours, a little different in every shot."""
    rng = np.random.default_rng(0)
    colours = rng.integers(30, 220, (identities, 3))
    pids, camids, _ = (x.ravel() for x in np.meshgrid(range(identities), range(cameras), range(shots), indexing="ij"))
    noise = rng.integers(-6, 7, (len(pids), 32, 16, 3))
    pixels = np.clip(colours[pids][:, None, None] + noise, 0, 255).astype(np.uint8)
    names = tuple(f"c/train/{i}.png" for i in range(len(pids)))
    return ImageList((pids + 100).astype(np.int64), (camids + 1).astype(np.int64), MemoryPixels(pixels, names))


def untrained() -> TinyNet:
    """Return the same network every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        return TinyNet()


def task_of(images: ImageList, **changes) -> Task:
    fields = {"repeats": 1, "held_out": np.zeros(len(images), bool), "client": 0, "round": 0, "last_round": False}
    return Task(images, **(fields | changes))


class Spy:
    """What was asked of the loader: training batches (with plans), and everything else."""

    def __init__(self, monkeypatch) -> None:
        self.training: list[np.ndarray] = []
        original = training.batches

        def batches(images, indices, height, width, *, plans=None, **options):
            self.training += list(indices) if plans is not None else []
            return original(images, indices, height, width, plans=plans, **options)

        monkeypatch.setattr(training, "batches", batches)


@pytest.fixture
def spy(monkeypatch) -> Spy:
    return Spy(monkeypatch)


@pytest.fixture
def learn(tiny_config):
    def run(task: Task, *overrides: str, model=None, teacher=None):
        config = tiny_config("data.labels=true", *overrides)
        model = model or untrained()
        task = replace(task, regulariser=build(config).regulariser)
        return train_local(model, teacher or freeze(model), [], task, config, VIEWING), model

    return run


class TestLearningRate:
    @pytest.fixture
    def local(self, tiny_config):
        return tiny_config(
            "local.lr=0.1",
            "local.lr_late=0.01",
            "local.lr_late_round=5",
            "local.last_round_epochs=50",
            "local.last_round_warmup_epochs=5",
            "local.last_round_warmup_factor=0.01",
            "local.last_round_decay_epochs=[20,40]",
        ).local

    @pytest.mark.parametrize(("round", "rate"), [(0, 0.1), (4, 0.1), (5, 0.01), (19, 0.01)])
    def test_constant_within_a_round_and_late_from_a_round_on(self, local, round, rate):
        assert [learning_rate(local, round, epoch, last_round=False) for epoch in (0, 3, 45)] == [rate] * 3

    @pytest.mark.parametrize(
        ("epoch", "rate"),
        [
            (0, 0.0001),  # 0.01 of 0.01
            (1, 0.01 * (0.01 + 0.99 / 5)),
            (4, 0.01 * (0.01 + 0.99 * 4 / 5)),
            (5, 0.01),
            (19, 0.01),
            (20, 0.001),
            (39, 0.001),
            (40, 0.0001),
            (49, 0.0001),
        ],
    )
    def test_the_last_round_warms_up_and_decays_twice(self, local, epoch, rate):
        assert learning_rate(local, 19, epoch, last_round=True) == pytest.approx(rate, rel=1e-12)

    def test_an_early_last_round_starts_from_the_early_rate(self, local):
        assert learning_rate(local, 1, 10, last_round=True) == pytest.approx(0.1)

    def test_is_what_the_optimizer_gets(self, learn, monkeypatch):
        rates = []
        original = torch.optim.Adam.step
        monkeypatch.setattr(
            torch.optim.Adam, "step", lambda self, *a, **k: rates.append(self.param_groups[0]["lr"]) or original(self)
        )
        schedule = (
            "local.lr=0.1",
            "local.last_round_epochs=4",
            "local.last_round_warmup_epochs=2",
            "local.last_round_warmup_factor=0.5",
            "local.last_round_decay_epochs=[3]",
            "local.batch_size=48",
        )
        learn(task_of(people(), last_round=True), *schedule)
        assert rates == pytest.approx([0.05, 0.075, 0.1, 0.01])


class TestBatches:
    def test_held_out_images_are_clustered_and_never_trained_on(self, learn, spy):
        images = people()
        held = np.arange(48) % 3 == 0
        report, _ = learn(task_of(images, held_out=held), "local.epochs=6")
        seen = np.unique(np.concatenate(spy.training))
        assert not held[seen].any()
        assert len(seen) > 25
        assert (report.labels[held] >= 0).all()

    @pytest.mark.parametrize(("repeats", "batches"), [(1, 3), (2, 6), (5, 15)])
    def test_repeated_images_make_a_longer_epoch(self, learn, spy, repeats, batches):
        report, _ = learn(task_of(people(), repeats=repeats))
        assert len(spy.training) == report.batches == batches  # 48 images, 16 in a batch
        assert (report.labels >= 0).all()
        assert report.outliers == 0

    def test_draws_depend_on_seed_client_round_and_epoch(self, learn, spy):
        images, orders = people(), []
        variants = [({}, ()), ({}, ()), ({"client": 1}, ()), ({"round": 1}, ()), ({}, ("run.seed=1",))]
        for changes, overrides in variants:
            spy.training.clear()
            learn(task_of(images, **changes), "local.epochs=2", *overrides)
            orders.append(np.concatenate(spy.training).tolist())
        assert orders[0] == orders[1]
        assert len({tuple(order) for order in orders}) == 4
        assert orders[0][:48] != orders[0][48:]  # another epoch

    def test_the_same_task_gives_the_same_bits(self, learn):
        first, again, other = (learn(task_of(people(), round=r))[1] for r in (2, 2, 3))
        states = [torch.cat([p.detach().ravel() for p in model.parameters()]) for model in (first, again, other)]
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])

    def test_unreadable_images_are_left_out_of_everything(self, learn, spy, monkeypatch):
        images = people()
        original = MemoryPixels.read

        def read(pixels, index):
            if index in {0, 7}:
                raise DataError("broken")
            return original(pixels, index)

        monkeypatch.setattr(MemoryPixels, "read", read)
        report, _ = learn(task_of(images), "local.epochs=4")
        assert images.bad == {0, 7}
        assert report.labels[[0, 7]].tolist() == [-1, -1]
        assert report.outliers == 0
        assert not np.isin(np.concatenate(spy.training), [0, 7]).any()

    def test_epochs(self, learn, monkeypatch):
        count = []
        original = training._proxies
        monkeypatch.setattr(training, "_proxies", lambda *a: count.append(0) or original(*a))
        learn(task_of(people()), "local.epochs=2", "local.last_round_epochs=3")
        assert len(count) == 2
        learn(task_of(people(), last_round=True), "local.epochs=2", "local.last_round_epochs=3")
        assert len(count) == 5


class TestLabels:
    def test_true_identities_need_no_clustering(self, learn, monkeypatch):
        monkeypatch.setattr(training, "cluster", lambda *a, **k: pytest.fail("clustered"))
        images = people()
        report, _ = learn(task_of(images))
        np.testing.assert_array_equal(report.labels, images.pids - 100)
        assert (report.clusters, report.outliers) == (6, 0)

    def test_without_them_features_are_clustered_as_configured(self, learn, monkeypatch):
        calls = []

        def cluster(features, **options):
            norms = features.norm(dim=1)
            torch.testing.assert_close(norms, torch.ones_like(norms))
            calls.append((len(features), options))
            return np.where(np.arange(len(features)) < 20, np.arange(len(features)) // 10, -1)

        monkeypatch.setattr(training, "cluster", cluster)
        options = ("clustering.k1=9", "clustering.k2=3", "clustering.eps=0.25", "clustering.min_samples=5")
        report, _ = learn(task_of(people()), "data.labels=false", *options)
        assert calls == [(48, {"k1": 9, "k2": 3, "eps": 0.25, "min_samples": 5, "interrupt": VIEWING.interrupt})]
        assert (report.clusters, report.outliers, report.batches) == (2, 28, 1)
        assert report.labels.tolist() == [0] * 10 + [1] * 10 + [-1] * 28

    def test_no_cluster_no_change(self, learn, monkeypatch):
        monkeypatch.setattr(training, "cluster", lambda features, **_: np.full(len(features), -1))
        model = untrained()
        report, _ = learn(task_of(people()), "data.labels=false", "local.epochs=3", model=model)
        assert (report.clusters, report.outliers, report.batches, report.idle_epochs) == (0, 48, 0, 3)
        assert all(math.isnan(value) for value in report.losses.values())
        for name, value in untrained().state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name


class TestLosses:
    def test_the_total_is_the_weighted_sum(self, learn):
        weights = ("loss.intra=2", "loss.inter=3", "kll.weight=5", "kll.start_round=0")
        report, _ = learn(task_of(people()), *weights, "local.epochs=3")
        x = report.losses
        assert min(x.values()) > 0
        assert x["total"] == pytest.approx(2 * x["intra"] + 3 * x["inter"] + 5 * x["kl"], rel=1e-5)

    @pytest.mark.parametrize(
        ("round", "overrides", "active"),
        [
            (0, (), False),
            (1, (), True),
            (2, ("kll.start_round=3",), False),
            (3, ("kll.start_round=3",), True),
            (3, ("kll.enabled=false",), False),
        ],
    )
    def test_kll_acts_from_its_first_round_on(self, learn, round, overrides, active):
        calls = []
        model = freeze(untrained())
        teacher = copy.deepcopy(model)
        teacher.register_forward_hook(lambda *_: calls.append(0))
        report, _ = learn(task_of(people(), round=round), *overrides, teacher=teacher)
        assert (len(calls) == 3) == active
        assert (report.losses["kl"] > 1e-3) == active

    def test_kll_compares_with_the_teacher_on_the_whole_batch(self, learn, monkeypatch):
        pairs = []

        def spying(reference, z, **options):
            pairs.append((reference, z.detach(), options))
            return kl_divergence(reference, z, **options)

        monkeypatch.setattr(regularisers, "kl_divergence", spying)
        options = ("kll.temperature=2", "kll.features=normalized")
        report, _ = learn(task_of(people(), round=1), *options, "local.batch_size=48")
        ((reference, z, found),) = pairs
        assert (len(reference), len(z)) == (48, 48)
        assert found == {"temperature": 2.0, "features": "normalized"}
        assert not reference.requires_grad
        assert report.losses["kl"] == pytest.approx(float(kl_divergence(reference, z, **found)))

    def test_teacher_and_frozen_parameters_stay(self, learn):
        model = untrained()
        teacher = freeze(model)
        before = copy.deepcopy(teacher.state_dict())
        learn(task_of(people(), round=1), "local.epochs=2", model=model, teacher=teacher)
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert not teacher.training
        assert torch.equal(model.neck.bias, torch.zeros(16))
        assert not torch.equal(model.neck.weight, before["neck.weight"])
        assert not torch.equal(model.norm.running_mean, before["norm.running_mean"])

    def test_a_loss_that_is_not_finite_says_where(self, learn, monkeypatch):
        calls = []

        def spoilt(features, *_, **__):
            calls.append(0)
            return features.sum() * (math.nan if len(calls) == 5 else 0.0)

        monkeypatch.setattr(training, "intra_camera_loss", spoilt)
        where = (
            r"not finite in round 2, epoch 1, batch 1: total nan, intra nan, inter [\d.]+, kl [\d.]+; lower local\.lr"
        )
        with pytest.raises(TrainingError, match=where):
            learn(task_of(people(), round=2), "local.epochs=3")

    def test_learns(self, learn):
        plain = ("local.augment.erase=0", "local.augment.pad=0", "kll.enabled=false", "local.lr=0.01")
        report, model = learn(task_of(people()), *plain)
        for turn in range(1, 4):
            last, _ = learn(task_of(people(), round=turn), *plain, "local.epochs=4", model=model)
        assert last.losses["total"] < 0.6 * report.losses["total"]


def test_freeze_makes_a_copy_of_its_own():
    model = untrained()
    frozen = freeze(model)
    assert model.training
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    assert any(p.requires_grad for p in model.parameters())
    model.first.weight.data.zero_()
    assert frozen.first.weight.abs().sum() > 0
