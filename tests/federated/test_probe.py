import math

import numpy as np
import pytest
from scipy.special import logsumexp

from fedmpi.federated.probe import Probe
from fedmpi.reid.images import ClientData
from tests.federated.scenes import VIEWING, Directions, client_data, numbered


def probe_of(config, data: ClientData, *, seed: int = 0, client: int = 0) -> Probe:
    return Probe(data, config.crr, config.loss.temperature, VIEWING, seed, client)


def held(probe: Probe) -> list[int]:
    return np.flatnonzero(probe.held_out).tolist()


def cosine(a: float, b: float) -> float:
    return math.cos(math.radians(a - b))


def mean_average_precision(angles, labels, asked, shown) -> float:
    """The definition, query by query; None of the queries' own views are in the gallery."""
    precisions = []
    for q in asked:
        ranking = sorted(shown, key=lambda g: -cosine(angles[q], angles[g]))
        hits = [place for place, g in enumerate(ranking) if labels[g] == labels[q]]
        if hits:
            precisions.append(np.mean([(k + 1) / (place + 1) for k, place in enumerate(hits)]))
    return float(np.mean(precisions)) if precisions else math.nan


class TestHoldout:
    def test_share_and_repeatability(self, tiny_config):
        data = client_data(numbered(50))
        config = tiny_config("crr.holdout=0.3")
        assert len(held(probe_of(config, data))) == 15
        assert held(probe_of(config, data)) == held(probe_of(config, data))
        assert held(probe_of(config, data)) != held(probe_of(config, data, client=1))
        assert held(probe_of(config, data)) != held(probe_of(config, data, seed=1))

    @pytest.mark.parametrize("override", ["crr.enabled=false", "crr.probe=test"])
    def test_nothing_is_held_out_when_nothing_needs_it(self, tiny_config, override):
        assert held(probe_of(tiny_config(override), client_data(numbered(50)))) == []


class TestPseudo:
    ANGLES = (0, 3, 6, 9, 12, 90, 93, 96, 99, 102, 40, 50)
    LABELS = np.array([0] * 5 + [1] * 5 + [0, -1])

    @pytest.fixture
    def probe(self, tiny_config):
        return probe_of(tiny_config("crr.holdout=0.4"), client_data(numbered(12)))

    def test_map_of_held_out_images_among_the_others(self, probe):
        angles = np.random.default_rng(1).uniform(0, 360, 12).tolist()
        asked = [q for q in held(probe) if self.LABELS[q] >= 0]
        shown = [g for g in range(12) if g not in held(probe) and self.LABELS[g] >= 0]
        expected = mean_average_precision(angles, self.LABELS, asked, shown)
        assert 0.2 < expected < 0.95, "the case must tell right from wrong"
        assert probe.measure(Directions(angles), self.LABELS) == pytest.approx(expected, abs=1e-9)

    def test_perfect_clusters(self, probe):
        labels = np.array([0] * 5 + [1] * 5 + [-1, -1])
        assert probe.measure(Directions(self.ANGLES), labels) == pytest.approx(1.0)

    def test_not_measured_before_the_first_clustering(self, probe):
        assert math.isnan(probe.measure(Directions(self.ANGLES), None))

    def test_not_measured_without_clusters(self, probe):
        assert math.isnan(probe.measure(Directions(self.ANGLES), np.full(12, -1)))

    @pytest.mark.parametrize("keep_held_out", [True, False])
    def test_not_measured_when_all_or_none_are_held_out(self, probe, keep_held_out):
        labels = np.where(probe.held_out == keep_held_out, 0, -1)
        assert math.isnan(probe.measure(Directions(self.ANGLES), labels))

    def test_not_measured_when_no_cluster_has_both(self, probe):
        labels = np.where(probe.held_out, 0, 1)
        assert math.isnan(probe.measure(Directions(self.ANGLES), labels))

    def test_a_large_client_is_measured_on_part_of_its_images(self, tiny_config):
        """More held-out images than a probe may have must leave some for the gallery."""
        data = client_data(numbered(200))
        probe = probe_of(tiny_config("crr.holdout=0.5", "crr.probe_images=40"), data)
        labels = np.arange(200) % 2
        angles = np.where(labels, 90.0, 0.0) + np.arange(200) / 100
        assert len(held(probe)) == 100
        assert probe.measure(Directions(angles.tolist()), labels) == pytest.approx(1.0)
        assert len(data.train) == 200


class TestLoss:
    @pytest.fixture
    def probe(self, tiny_config):
        return probe_of(tiny_config("crr.probe=loss", "crr.holdout=0.4"), client_data(numbered(12)))

    def test_minus_the_cross_entropy_against_the_centres_of_the_rest(self, probe):
        rng = np.random.default_rng(2)
        angles, labels = rng.uniform(0, 360, 12).tolist(), np.arange(12) % 4 - 1
        points = np.array([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])
        asked, losses = held(probe), []
        shown = [g for g in range(12) if g not in asked]
        names = sorted({int(labels[g]) for g in shown} - {-1})
        sums = np.array([sum(points[g] for g in shown if labels[g] == name) for name in names])
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        for q in asked:
            if labels[q] in names:
                logits = centres @ points[q] / 0.07
                losses.append(logsumexp(logits) - logits[names.index(labels[q])])
        assert len(losses) >= 2
        assert probe.measure(Directions(angles), labels) == pytest.approx(-np.mean(losses), rel=1e-5)

    def test_not_measured_when_all_clusters_of_held_out_images_are_unknown(self, probe):
        labels = np.where(probe.held_out, 0, 1)
        assert math.isnan(probe.measure(Directions(list(range(12))), labels))


class TestTest:
    def test_rank_1_on_the_test_images(self, tiny_config):
        # queries 0 and 1 of people 7 and 8; gallery 2..4. Query 0 finds 7 first, query 1 finds 7 before 8.
        images = numbered(5, pids=[7, 8, 7, 8, 7], camids=[1, 1, 2, 2, 2])
        data = ClientData("x", numbered(1), images.take([0, 1]), images.take([2, 3, 4]))
        probe = probe_of(tiny_config("crr.probe=test"), data)
        assert probe.measure(Directions([0, 50, 5, 90, 45]), None) == 0.5
