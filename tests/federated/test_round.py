"""Whole rounds with the tiny network in one process, and a probe whose answers are written down."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedmpi.comm import Direction
from fedmpi.federated.client import Client
from fedmpi.federated.probe import Probe
from fedmpi.federated.round import first_state, is_due, run_round
from fedmpi.pruning import Decision
from fedmpi.sparse import Mask

pytestmark = pytest.mark.usefixtures("tiny_net")

# Answers of client 0's probe: as received, then (where a pruning event is due) before and after pruning.
SCRIPT = {
    0: (0.50, 0.60, 0.60),  # passes (the first); accepted
    1: (0.50, 0.60, 0.60),  # passes; accepted
    2: (0.495, 0.60, 0.591),  # passes, within tau2 of the best; accepted, within tau1
    3: (0.40,),  # recovers to the mask of round 2's beginning; no pruning
    4: (0.395, 0.60, 0.58),  # passes, the bar was lowered; halted
    5: (0.50, 0.60, 0.60),  # passes; accepted
}
DECISIONS = [Decision.ACCEPTED] * 3 + [Decision.RECOVERED, Decision.HALTED, Decision.ACCEPTED]
DENSITY_AFTER = [0.8, 0.64, 0.512, 0.64, 0.64, 0.512]


class Spy:
    """What the clients were given to train on, and what they sent, by (round, client)."""

    def __init__(self, monkeypatch) -> None:
        self.received, self.updates = {}, {}
        original = Client.train

        def train(client, state, received, round, log, room=None):
            self.received[round, client.index] = received
            after, update = original(client, state, received, round, log, room)
            self.updates[round, client.index] = update
            return after, update

        monkeypatch.setattr(Client, "train", train)


@pytest.fixture
def spy(monkeypatch) -> Spy:
    return Spy(monkeypatch)


@pytest.fixture
def scripted(monkeypatch, spy, world):
    """Run six rounds; client 0's probe follows SCRIPT, client 1's never changes."""
    built = world("federation.rounds=6", "pruning.target=0.9")
    answers = [x for number in sorted(SCRIPT) for x in SCRIPT[number]]
    followed = built.clients[0].probe
    monkeypatch.setattr(Probe, "measure", lambda probe, *_: answers.pop(0) if probe is followed else 0.5)
    states, thetas, results = [first_state(built)], [], []
    for number in range(6):
        thetas.append(states[-1].server.theta.copy())
        state, result = run_round(built, states[-1], number)
        states.append(state)
        results.append(result)
    assert answers == []
    return SimpleNamespace(world=built, states=states, thetas=thetas, results=results, spy=spy)


class TestRecovery:
    def test_decisions_and_densities(self, scripted):
        rows = [result.clients for result in scripted.results]
        assert [row["crr_decision"][0] for row in rows] == DECISIONS
        np.testing.assert_allclose([row["density"][0] for row in rows], DENSITY_AFTER, atol=2e-3)
        np.testing.assert_allclose([row["density"][1] for row in rows], [0.8**k for k in range(1, 7)], atol=3e-3)
        assert [row["crr_received"][0] for row in rows] == [SCRIPT[r][0] for r in range(6)]
        assert np.isnan(rows[3]["crr_before"][0])
        assert (rows[4]["crr_before"][0], rows[4]["crr_after"][0]) == (0.60, 0.58)

    def test_the_mask_goes_back_to_the_last_good_round(self, scripted):
        masks = [state.clients[0].history.mask for state in scripted.states]
        assert masks[4] == masks[2] != masks[3]
        assert masks[5] == masks[4]

    def test_both_ends_remember_the_same(self, scripted):
        for state in scripted.states:
            for c in (0, 1):
                assert state.clients[c].history == state.server.histories[c]
        assert scripted.states[4].clients[0].history.epoch == 4  # three prunings and a recovery

    def test_the_lost_positions_come_back_with_the_server_s_values(self, scripted):
        theta, (before, after) = scripted.thetas[3], (scripted.states[i].clients[0].history.mask for i in (3, 4))
        lost = after.difference(before).to_bool()
        assert lost.sum() > 100
        got = scripted.spy.received[3, 0]
        assert got.recover
        np.testing.assert_array_equal(got.theta, np.where(after.to_bool(), theta, 0))
        assert got.theta[lost].any()
        for (number, client), received in scripted.spy.received.items():
            if (number, client) != (3, 0):
                assert not received.recover
                kept = scripted.states[number].clients[client].history.mask.to_bool()
                np.testing.assert_array_equal(received.theta, np.where(kept, scripted.thetas[number], 0))

    def test_only_what_was_lost_travels_for_it(self, scripted):
        sent = [[m for m in r.messages if m.direction == Direction.RECOVER] for r in scripted.results]
        assert [len(messages) for messages in sent] == [0, 0, 0, 1, 0, 0]
        (message,) = sent[3]
        masks = [state.clients[0].history.mask for state in scripted.states]
        lost = masks[4].difference(masks[3]).count()
        assert (message.client, message.header, message.values, message.mask) == (0, 128, 4 * lost, 0)
        requests = [m for m in scripted.results[3].messages if m.direction == Direction.REQUEST]
        assert [(m.client, m.total) for m in requests] == [(0, 128), (1, 128)]

    def test_the_bar_follows(self, scripted):
        assert [state.clients[0].crr.best for state in scripted.states[1:]] == [0.5, 0.5, 0.5, 0.4, 0.4, 0.5]


class TestAggregation:
    @pytest.mark.parametrize("sas", [True, False])
    def test_the_new_model_is_the_masked_mean_of_the_updates(self, world, spy, sas):
        built = world("crr.enabled=false", "pruning.step=0.5", f"sas.enabled={sas}", "klaw.enabled=false")
        state = first_state(built)
        for number in range(2):
            old = state.server.theta.astype(np.float64)
            state, result = run_round(built, state, number)
            total, share, buffers = np.zeros(old.size), np.zeros(old.size), 0.0
            for c, w in zip(result.selection.merged, result.selection.weights.weight, strict=True):
                update = spy.updates[number, c]
                kept = update.mask.to_bool()
                total[kept] += w * update.values
                share += w * (kept if sas else 1.0)
                buffers = buffers + w * update.buffers.astype(np.float64)
            expected = np.where(share > 0, total / np.where(share > 0, share, 1), old)
            np.testing.assert_allclose(state.server.theta, expected, rtol=2e-6, atol=1e-9)
            np.testing.assert_allclose(state.server.buffers, buffers, rtol=1e-6)
            assert result.masks == {c: spy.updates[number, c].mask for c in (0, 1)}
        pruned_by_both = ~result.masks[0].to_bool() & ~result.masks[1].to_bool()
        assert pruned_by_both.sum() > 100
        assert (state.server.theta[pruned_by_both] == 0).all() != sas

    def test_weights_are_by_images_without_klaw_and_praw(self, world, spy):
        built = world("klaw.enabled=false", "praw.enabled=false")
        _, result = run_round(built, first_state(built), 0)
        images = np.array([len(client.data.train) for client in built.clients.values()])
        assert images[0] != images[1]
        np.testing.assert_allclose(result.selection.weights.weight, images / images.sum())

    def test_a_refused_update_moves_nothing_and_its_client_goes_on(self, world, monkeypatch):
        built = world("comm.bad_update=skip", "crr.enabled=false")
        original = Client.train

        def spoilt(client, state, received, round, log, room=None):
            after, update = original(client, state, received, round, log, room)
            if (client.index, round) == (1, 0):
                object.__setattr__(update, "norm", float("nan"))
            return after, update

        monkeypatch.setattr(Client, "train", spoilt)
        spy = Spy(monkeypatch)
        state, result = run_round(built, first_state(built), 0)
        assert (result.selection.merged, list(result.selection.skipped)) == ([0], [1])
        kept = spy.updates[0, 0].mask.to_bool()
        np.testing.assert_allclose(state.server.theta[kept], spy.updates[0, 0].values, rtol=1e-6)
        assert state.clients[1].history == state.server.histories[1]
        _, result = run_round(built, state, 1)
        assert result.selection.merged == [0, 1]


class TestEvaluation:
    @pytest.mark.parametrize(("every", "due"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (3, [2, 4]), (9, [4])])
    def test_every_so_many_rounds_and_always_at_the_end(self, tiny_config, every, due):
        config = tiny_config("federation.rounds=5", f"evaluation.every={every}")
        assert [number for number in range(5) if is_due(config, number)] == due

    def test_personal_and_global_models_are_what_is_scored(self, world, monkeypatch):
        built = world("crr.enabled=false", "pruning.step=0.5")
        scored = []
        original = Client.evaluate

        def evaluate(client, theta, buffers):
            scored.append((client.index, theta.copy(), buffers.copy()))
            return original(client, theta, buffers)

        monkeypatch.setattr(Client, "evaluate", evaluate)
        state, result = run_round(built, first_state(built), 0)
        assert [c for c, _, _ in scored] == [0, 0, 1, 1]
        for turn, (c, theta, buffers) in enumerate(scored):
            kept = state.clients[c].history.mask.to_bool() if turn % 2 == 0 else True
            np.testing.assert_array_equal(theta, state.server.theta * kept)
            np.testing.assert_array_equal(buffers, state.server.buffers)
        assert np.isfinite(result.clients["map"]).all()
        assert np.isfinite(result.clients["global_map"]).all()

    def test_what_is_sent_to_measure_is_told_apart(self, world):
        built = world("evaluation.every=2")
        state, first = run_round(built, first_state(built), 0)
        assert {m.direction for m in first.messages} == {Direction.DOWN, Direction.UP, Direction.REQUEST}
        assert np.isnan(first.clients["map"]).all()
        _, second = run_round(built, state, 1)
        sent = [m for m in second.messages if m.direction == Direction.EVALUATE]
        size = built.learner.layout.size
        assert [(m.client, m.values) for m in sent] == [(0, 4 * size), (1, 4 * size)]


def test_segments_are_in_units_of_a_million_bytes(world):
    """1020 bytes are 255 values, hence 192 (whole words of a mask); 2072 parameters make eleven such ranges."""
    built = world("comm.segment_mb=0.00102")
    assert built.reduce.segments(Mask.full(2072)) == 11


def test_times_add_up(world):
    _, result = run_round(built := world(), first_state(built), 0)
    stages = {name: result.seconds[name] for name in ("downlink", "local", "uplink", "evaluate")}
    assert all(seconds > 0 for seconds in stages.values())
    assert sum(stages.values()) == pytest.approx(result.seconds["round"], rel=0.05, abs=0.02)
    assert 0 < sum(result.seconds[name] for name in ("wait", "decode", "merge")) < result.seconds["uplink"]
    assert 0 < result.seconds["encode"] < result.seconds["downlink"]
    for c in (0, 1):
        row = {name: values[c] for name, values in result.clients.items()}
        own = sum(row[f"seconds_{n}"] for n in ("train", "cluster", "probe", "prune", "encode", "evaluate"))
        assert 0 < own < result.seconds["round"]
        assert row["seconds_train"] > 0
        assert row["seconds_cluster"] > 0
