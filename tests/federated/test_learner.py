import numpy as np
import pytest
import torch

from fedmpi.federated.learner import Learner, deterministic, initial_model

pytestmark = pytest.mark.usefixtures("tiny_net")


@pytest.fixture
def learner(tiny_config) -> Learner:
    return Learner(tiny_config(), torch.device("cpu"))


def test_model_and_teacher_are_the_same_at_first_and_only_the_model_learns(learner):
    model, teacher = learner.model, learner.teacher
    for name, parameter in teacher.named_parameters():
        assert not parameter.requires_grad
        torch.testing.assert_close(parameter, dict(model.named_parameters())[name])
    assert any(p.requires_grad for p in model.parameters())
    assert not teacher.training
    model.first.weight.data.zero_()
    assert teacher.first.weight.abs().sum() > 0


def test_flat_vectors_go_in_and_come_out(learner):
    rng = np.random.default_rng(0)
    theta = rng.standard_normal(learner.layout.size).astype(np.float32)
    buffers = rng.random(learner.layout.buffer_size).astype(np.float32)
    assert learner.load(theta, buffers) is learner.model
    for got, sent in zip(learner.read(), (theta, buffers), strict=True):
        np.testing.assert_array_equal(got, sent)
    learner.load_teacher(theta + 1, buffers)
    np.testing.assert_array_equal(learner.teacher.first.weight.numpy().ravel(), (theta + 1)[: 8 * 75])
    np.testing.assert_array_equal(learner.read()[0], theta)


def test_only_conv_and_linear_weights_are_prunable(learner):
    names = {t.name for t in learner.layout.tensors if t.prunable}
    assert names == {"first.weight", "second.weight", "linear.weight"}
    assert sum(s.stop - s.start for s in learner.prunable) == 8 * 75 + 16 * 72 + 16 * 16


def test_keep_pairs_pruned_parameters_with_their_masks(learner):
    kept = np.ones(learner.layout.size, bool)
    assert learner.keep(kept) == []
    where = next(t.slice for t in learner.layout.tensors if t.name == "second.weight")
    kept[where.start + 5] = kept[where.start + 1000] = False
    ((parameter, mask),) = learner.keep(kept)
    assert parameter is learner.model.second.weight
    assert mask.shape == parameter.shape
    assert np.flatnonzero(mask.numpy().ravel() == 0).tolist() == [5, 1000]


def test_the_untrained_network_depends_on_the_seed_alone(monkeypatch, tiny_config):
    monkeypatch.undo()  # the real one
    first, again, other = (
        initial_model(tiny_config("model.arch=resnet18", f"run.seed={seed}")).base.conv1.weight for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class TestDeterministic:
    @pytest.fixture(autouse=True)
    def _restore(self):
        before = self.settings()
        yield
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]

    @staticmethod
    def settings():
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark

    @pytest.mark.parametrize("benchmark", [True, False])
    def test_sets_and_restores_also_after_an_error(self, tiny_config, benchmark):
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)
        config = tiny_config("compute.threads=2")

        def fail():
            with deterministic(config):
                assert self.settings() == (2, True, False)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert self.settings() == (1, False, benchmark)

    def test_can_be_switched_off(self, tiny_config):
        torch.use_deterministic_algorithms(True)
        with deterministic(tiny_config("run.deterministic=false")):
            assert self.settings()[1] is False
        assert self.settings()[1] is True
