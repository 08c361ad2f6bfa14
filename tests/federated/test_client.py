import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.special import softmax

from fedmpi.comm import Parcel
from fedmpi.errors import DataError, TrainingError
from fedmpi.federated import client as client_module
from fedmpi.federated.client import Client, ClientState, Measurements, Received, scores
from fedmpi.federated.history import MaskHistory
from fedmpi.federated.learner import Learner
from fedmpi.pruning import CrrState, Decision
from fedmpi.reid.datasets import load_client
from fedmpi.reid.evaluation import RetrievalScore
from fedmpi.reid.transforms import plain_batch
from fedmpi.sparse import Mask

pytestmark = pytest.mark.usefixtures("tiny_net")


@pytest.fixture
def make(tiny_config):
    def client(*overrides: str, index: int = 0) -> Client:
        config = tiny_config(*overrides)
        return Client(index, load_client(config.data, config.run.seed, index), Learner(config, torch.device("cpu")))

    return client


def pruned_half(client: Client) -> Mask:
    """Return a mask that lacks half of the prunable weights."""
    kept = np.ones(client.learner.layout.size, bool)
    rng = np.random.default_rng(0)
    for where in client.learner.prunable:
        kept[where] = rng.random(where.stop - where.start) < 0.5
    return Mask.from_bool(kept)


def received(client: Client, mask: Mask) -> Received:
    theta, buffers = client.learner.read()
    return Received(theta * mask.to_bool(), buffers)


def start(client: Client, mask: Mask | None = None) -> tuple[ClientState, Received]:
    mask = mask or Mask.full(client.learner.layout.size)
    return ClientState(MaskHistory(mask, mask, 1)), received(client, mask)


@pytest.fixture
def trained(monkeypatch):
    """Collect the trained models, before pruning, as flat vectors."""
    found = []
    read = Learner.read
    monkeypatch.setattr(Learner, "read", lambda self, mask=None: found.append(read(self, mask)) or found[-1])
    return found


class TestTrain:
    @pytest.mark.parametrize("weight_decay", ["0.0", "0.1"])
    def test_pruned_weights_stay_exactly_zero_and_the_others_move(self, make, trained, weight_decay):
        client = make("pruning.enabled=false", f"local.weight_decay={weight_decay}", "local.epochs=2")
        mask = pruned_half(client)
        state, got = start(client, mask)
        trained.clear()
        _, update = client.train(state, got, 0, Measurements())
        ((theta, _),) = trained
        kept = mask.to_bool()
        assert not theta[~kept].any()
        moved = np.concatenate([(theta != got.theta)[s][kept[s]] for s in client.learner.prunable])
        assert moved.mean() > 0.9
        np.testing.assert_array_equal(update.values, theta[kept])
        assert update.mask == mask

    def test_the_update_says_what_it_is(self, make, trained):
        client = make("crr.enabled=false", "pruning.step=0.3")
        state, got = start(client)
        trained.clear()
        log = Measurements()
        after, update = client.train(state, got, 0, log)
        theta, buffers = trained[0]
        assert after.history is state.history  # the round moves it, at both ends alike
        np.testing.assert_array_equal(update.values, theta[update.mask.to_bool()])
        np.testing.assert_array_equal(update.buffers, buffers)
        assert update.images == len(client.data.train)
        assert update.norm == pytest.approx(np.sqrt((update.values.astype(np.float64) ** 2).sum()))
        sizes = [s.stop - s.start for s in client.learner.prunable]
        removed = sum(int(0.3 * size) for size in sizes)
        assert update.mask.count() == client.learner.layout.size - removed
        assert log.values["density"] == pytest.approx(1 - removed / sum(sizes))
        assert log.values["crr_decision"] == Decision.ACCEPTED
        assert log.values["norm"] == update.norm
        assert log.values["train_images"] == len(client.data.train)
        assert after.labels.shape == (len(client.data.train),)

    @pytest.mark.parametrize("pruning", ["true", "false"])
    def test_values_are_packed_where_they_are_wanted(self, make, trained, pruning):
        """All of them as well: what lies where the server reads it need not be kept elsewhere."""
        client = make("crr.enabled=false", f"pruning.enabled={pruning}")
        state, got = start(client)
        rooms = []

        def room(count):
            rooms.append(np.full(count, 7, np.float32))
            return rooms[-1]

        trained.clear()
        _, update = client.train(state, got, 0, Measurements(), room)
        assert update.values is rooms[0]
        assert len(rooms) == 1
        assert update.mask.is_full == (pruning == "false")
        np.testing.assert_array_equal(update.values, trained[0][0][update.mask.to_bool()])

    def test_repeats_count_as_images(self, make):
        client = make("data.ide={prid: 3}")
        _, update = client.train(*start(client), 0, Measurements())
        assert update.images == 3 * len(client.data.train)

    def test_a_client_without_clusters_goes_on_unchanged(self, make, trained):
        client = make("clustering.min_samples=1000", "local.epochs=3", "pruning.enabled=false")
        state, got = start(client, pruned_half(client))
        trained.clear()
        log = Measurements()
        after, update = client.train(state, got, 0, log)
        np.testing.assert_array_equal(trained[0][0], got.theta)
        np.testing.assert_array_equal(trained[0][1], got.buffers)
        np.testing.assert_array_equal(update.values, got.theta[state.history.mask.to_bool()])
        assert (log.values["idle_epochs"], log.values["batches"], log.values["clusters"]) == (3, 0, 0)
        assert log.values["outliers"] == len(client.data.train)
        assert math.isnan(log.values["loss_total"])
        assert update.divergence == 0.0
        assert (after.labels == -1).all()

    @pytest.mark.parametrize("part", [0, 1])
    def test_a_model_that_is_not_finite_is_not_sent(self, make, monkeypatch, part):
        client = make()
        state, got = start(client)
        spoilt = client.learner.read()
        spoilt[part][5] = np.nan
        monkeypatch.setattr(Learner, "read", lambda self, mask: spoilt)
        with pytest.raises(TrainingError, match=r"trained in round 3 is not finite; lower local\.lr"):
            client.train(state, got, 3, Measurements())


class TestPruning:
    """Which mask is sent, for all decisions; the probe's answers are written down."""

    @pytest.fixture
    def decide(self, make, monkeypatch):
        def run(*overrides: str, answers: list[float], recovered: bool = False, round: int = 0, full: bool = True):
            client = make(*overrides)
            monkeypatch.setattr(client.probe, "measure", lambda model, labels: answers.pop(0))
            state, got = start(client, None if full else pruned_half(client))
            log = Measurements()
            _, update = client.train(state, Received(got.theta, got.buffers, recovered), round, log)
            assert answers == []
            return update.mask == state.history.mask, log.values

        return run

    def test_accepted(self, decide):
        same, log = decide(answers=[0.5, 0.4901])
        assert (same, log["crr_decision"]) == (False, Decision.ACCEPTED)
        assert (log["crr_before"], log["crr_after"]) == (0.5, 0.4901)

    def test_halted(self, decide):
        same, log = decide(answers=[0.5, 0.4899])
        assert (same, log["crr_decision"]) == (True, Decision.HALTED)

    def test_not_measurable_is_accepted(self, decide):
        same, log = decide(answers=[math.nan, 0.1])
        assert (same, log["crr_decision"]) == (False, Decision.ACCEPTED)

    def test_none_after_a_recovery(self, decide):
        same, log = decide(answers=[], recovered=True, full=False)
        assert (same, log["crr_decision"]) == (True, Decision.RECOVERED)

    def test_none_beyond_the_target(self, decide):
        same, log = decide("pruning.target=0.3", answers=[], full=False)
        assert (same, log["crr_decision"]) == (True, Decision.TARGET_REACHED)

    def test_off(self, decide):
        same, log = decide("pruning.enabled=false", answers=[])
        assert (same, log["crr_decision"]) == (True, Decision.OFF)

    def test_not_yet(self, decide):
        same, log = decide("pruning.start_round=1", answers=[])
        assert (same, log["crr_decision"]) == (True, Decision.OFF)
        same, _ = decide("pruning.start_round=1", answers=[0.5, 0.5], round=1)
        assert not same

    def test_without_crr_nothing_is_asked(self, decide):
        same, log = decide("crr.enabled=false", answers=[])
        assert (same, log["crr_decision"]) == (False, Decision.ACCEPTED)
        assert "crr_before" not in log


class TestCheck:
    @pytest.fixture
    def check(self, make, monkeypatch):
        def run(*overrides: str, answer: float, best: float = math.nan):
            client = make(*overrides)
            mask = pruned_half(client)
            seen = {}

            def measure(model, labels):
                seen["theta"] = client.learner.layout.flatten(model)[0]
                return answer

            monkeypatch.setattr(client.probe, "measure", measure)
            state = ClientState(MaskHistory(mask, Mask.full(mask.size), 4), CrrState(best))
            values = np.arange(1, mask.count() + 1, dtype=np.float32)
            buffers = np.full(client.learner.layout.buffer_size, 2.0, np.float32)
            log = Measurements()
            after, got = client.check(state, Parcel(mask, values, buffers), log)
            expected = np.zeros(mask.size, np.float32)
            expected[mask.to_bool()] = values
            np.testing.assert_array_equal(got.theta, expected)
            np.testing.assert_array_equal(got.buffers, buffers)
            assert after.history is state.history
            return got.recover, after.crr.best, log.values, seen.get("theta"), expected

        return run

    def test_a_good_model_passes_and_raises_the_bar(self, check):
        recover, best, log, measured, expected = check(answer=0.7, best=0.6)
        assert (recover, best, log["crr_received"]) == (False, 0.7, 0.7)
        np.testing.assert_array_equal(measured, expected)

    def test_a_bad_model_recovers_and_lowers_the_bar(self, check):
        assert check(answer=0.58, best=0.6)[:2] == (True, 0.58)

    def test_not_measurable_passes(self, check):
        assert check(answer=math.nan, best=0.6)[:2] == (False, 0.6)

    def test_without_crr_nothing_is_asked(self, check):
        recover, best, log, measured, _ = check("crr.enabled=false", answer=0.0, best=0.6)
        assert (recover, best, log, measured) == (False, 0.6, {}, None)


def test_recovery_fills_the_lost_positions_and_no_others(make):
    client = make()
    now, good = pruned_half(client), Mask.full(client.learner.layout.size)
    state = ClientState(MaskHistory(now, good, 2))
    theta, buffers = client.learner.read()
    server = np.random.default_rng(1).standard_normal(theta.size).astype(np.float32)
    lost = ~now.to_bool()
    parcel = Parcel(Mask.from_bool(lost), server[lost], buffers)
    got = client.recover(state, Received(theta * ~lost, buffers, recover=True), parcel)
    np.testing.assert_array_equal(got.theta, np.where(lost, server, theta))
    assert got.recover


class TestDivergence:
    @pytest.mark.parametrize(("images", "temperature"), [(32, 1.0), (5, 0.5), (100_000, 3.0)])
    def test_mean_kl_after_from_before_by_scipy(self, make, images, temperature):
        client = make(f"klaw.images={min(images, 65536)}", f"klaw.temperature={temperature}")
        rng = np.random.default_rng(3)
        layout, learner = client.learner.layout, client.learner
        buffers = rng.uniform(0.5, 1.5, layout.buffer_size).astype(np.float32)
        for load in (learner.load, learner.load_teacher):
            load(0.1 * rng.standard_normal(layout.size).astype(np.float32), buffers)
        train = client.data.train
        pixels = plain_batch([train.pixels.read(i) for i in range(min(images, len(train)))])
        with torch.inference_mode():
            after, before = (
                softmax(net.eval()(pixels).double().numpy() / temperature, axis=1)
                for net in (learner.model, learner.teacher)
            )
        expected = scipy.stats.entropy(after, before, axis=1).mean()
        assert client._divergence() == pytest.approx(expected, rel=1e-4)
        assert abs(expected - scipy.stats.entropy(before, after, axis=1).mean()) > 1e-3 * expected, "direction matters"

    def test_is_what_the_update_says(self, make, monkeypatch):
        client = make()
        log = Measurements()
        monkeypatch.setattr(Client, "_divergence", lambda self: 1.25)
        _, update = client.train(*start(client), 0, log)
        assert update.divergence == log.values["kl_divergence"] == 1.25


class TestEvaluate:
    def test_scores_have_names(self):
        score = RetrievalScore(0.25, {1: 0.5, 5: 0.75}, queries=4, skipped=1)
        assert scores(score, "global_") == {
            "global_map": 0.25,
            "global_rank1": 0.5,
            "global_rank5": 0.75,
            "global_queries_skipped": 1,
        }

    def test_the_given_model_is_scored_not_the_last_one(self, make, monkeypatch):
        client = make("evaluation.protocol.ap=trapezoid")
        seen = []
        monkeypatch.setattr(
            client_module,
            "evaluate",
            lambda model, data, viewing, ranks, protocol: seen.append((model, data, ranks, protocol)),
        )
        theta, buffers = client.learner.read()
        client.evaluate(theta * 0 + 3, buffers)
        ((model, data, ranks, protocol),) = seen
        assert (client.learner.layout.flatten(model)[0] == 3).all()
        assert data is client.data
        assert tuple(ranks) == (1, 5, 10)
        assert protocol.ap == "trapezoid"


def break_images(images, broken: set[int]) -> None:
    class Broken:
        def __init__(self, inner):
            self.inner = inner

        def __len__(self):
            return len(self.inner)

        def name(self, i):
            return self.inner.name(i)

        def read(self, i):
            if i in broken:
                raise DataError(f"{self.name(i)}: cannot be read as an image: truncated")
            return self.inner.read(i)

    object.__setattr__(images, "pixels", Broken(images.pixels))


class TestBadImages:
    def test_are_counted_named_and_left_out(self, make, caplog):
        client = make("data.max_bad_share=0.2")
        break_images(client.data.train, {3})
        log = Measurements()
        after, _ = client.train(*start(client), 0, log)
        assert log.values["bad_images"] == 1
        assert log.values["train_images"] == len(client.data.train) - 1
        assert after.labels[3] == -1
        messages = [r.getMessage() for r in caplog.records]
        assert len(messages) == 1
        assert client.data.train.pixels.name(3) in messages[0]
        caplog.clear()
        client.train(*start(client), 1, Measurements())
        assert not caplog.records  # said once

    def test_too_many_are_an_error(self, make):
        client = make("data.max_bad_share=0.1")
        n = len(client.data.train)
        break_images(client.data.train, set(range(n // 10 + 1)))
        with pytest.raises(DataError, match=rf"{n // 10 + 1} of {n} images cannot be read.*max_bad_share=0.1"):
            client.train(*start(client), 0, Measurements())

    def test_among_the_test_images_too(self, make):
        client = make("data.max_bad_share=0.1")
        break_images(client.data.gallery, set(range(len(client.data.gallery) // 2)))
        with pytest.raises(DataError, match="images cannot be read"):
            client.evaluate(*client.learner.read())
