"""Decision tables of the sparsity policies, worked by hand from METHOD section 6; the probe is scripted."""

import math

import numpy as np
import pytest
import scipy.spatial.distance

from fedmpi.config import LotteryflConfig, SubfedavgConfig
from fedmpi.federated.measurements import Measurements
from fedmpi.federated.sparsity import Dense, Lottery, Settled, Site, hamming
from fedmpi.pruning import Decision

# Two prunable layers of ten weights, and two parameters that are not prunable.
PRUNABLE = [slice(0, 10), slice(12, 22)]
N = 22
BUFFERS = np.zeros(1, np.float32)
INITIAL = np.full(N, 7.0, np.float32)


def ascending() -> np.ndarray:
    """Return parameters whose magnitude grows with their index."""
    return np.arange(1, N + 1, dtype=np.float32)


def without(*places: int) -> np.ndarray:
    kept = np.ones(N, bool)
    kept[list(places)] = False
    return kept


HALF = without(*range(5), *range(12, 17))


def site(*answers: float) -> Site:
    """Return a site whose probe gives these answers, all of which must be asked for."""
    left = list(answers)
    return Site(3, False, PRUNABLE, lambda *_: left.pop(0), INITIAL.copy, Measurements())


class TestDense:
    def test_keeps_everything_and_asks_nothing(self):
        here = site()
        theta, kept = Dense().begin(here, ascending(), BUFFERS, without())
        assert Dense().finish(here, theta, BUFFERS, kept, None).all()
        np.testing.assert_array_equal(theta, ascending())
        assert here.log.values == {"crr_decision": Decision.OFF}


class TestLottery:
    """Threshold 0.5, 20 % a layer, target 0.5."""

    @pytest.mark.parametrize(
        ("probe", "before", "decision", "gone"),
        [
            (0.51, without(), Decision.ACCEPTED, [0, 1, 12, 13]),
            (0.50, without(), Decision.HALTED, []),
            (0.49, without(), Decision.HALTED, []),
            (math.nan, without(), Decision.HALTED, []),
            # eight of ten are alive: 20 % of eight is one
            (0.9, without(0, 1, 12, 13), Decision.ACCEPTED, [0, 1, 2, 12, 13, 14]),
            # six alive: one more, and the target is reached
            (0.9, without(*range(4), *range(12, 16)), Decision.ACCEPTED, [*range(5), *range(12, 17)]),
        ],
    )
    def test_table(self, probe, before, decision, gone):
        here = site(probe)
        theta, kept = Lottery(LotteryflConfig()).begin(here, ascending() * before, BUFFERS, before)
        expected = without(*gone) if decision is Decision.ACCEPTED else before
        np.testing.assert_array_equal(kept, expected)
        rewound = INITIAL * expected
        np.testing.assert_array_equal(theta, rewound if decision is Decision.ACCEPTED else ascending() * before)
        assert here.log.values["crr_decision"] == decision

    def test_at_the_target_the_probe_is_not_asked(self):
        here = site()
        theta, kept = Lottery(LotteryflConfig()).begin(here, ascending() * HALF, BUFFERS, HALF)
        np.testing.assert_array_equal(kept, HALF)
        np.testing.assert_array_equal(theta, ascending() * HALF)
        assert here.log.values == {"crr_decision": Decision.TARGET_REACHED}

    def test_after_training_the_mask_stays(self):
        assert Lottery(LotteryflConfig()).finish(site(), ascending(), BUFFERS, HALF, None) is HALF


class TestSettled:
    """10 % a layer, target 0.5, Hamming 1e-4, tolerance 0; the last epoch's candidate lacks the first of each layer."""

    SAME, OTHER = without(0, 12), without(1, 12)  # candidates of the first epoch

    @pytest.mark.parametrize(
        ("early", "answers", "decision"),
        [
            (OTHER, (0.6, 0.6), Decision.ACCEPTED),
            (OTHER, (0.6, 0.61), Decision.ACCEPTED),
            (OTHER, (0.6, 0.599), Decision.HALTED),
            (OTHER, (math.nan, 0.1), Decision.ACCEPTED),
            (SAME, (), Decision.HALTED),
            (None, (), Decision.HALTED),
        ],
    )
    def test_table(self, early, answers, decision):
        here = site(*answers)
        kept = Settled(SubfedavgConfig()).finish(here, ascending(), BUFFERS, without(), early)
        np.testing.assert_array_equal(kept, without(0, 12) if decision is Decision.ACCEPTED else without())
        assert here.log.values["crr_decision"] == decision
        assert ("crr_after" in here.log.values) == bool(answers)

    def test_a_difference_of_exactly_the_threshold_is_not_enough(self):
        # two of twenty prunable entries differ
        for threshold, decision in ((0.1, Decision.HALTED), (0.099, Decision.ACCEPTED)):
            here = site(*(() if decision is Decision.HALTED else (0.5, 0.5)))
            Settled(SubfedavgConfig(hamming=threshold)).finish(here, ascending(), BUFFERS, without(), self.OTHER)
            assert here.log.values["crr_decision"] == decision

    def test_below_the_target_only(self):
        here = site()
        assert Settled(SubfedavgConfig()).finish(here, ascending(), BUFFERS, HALF, without()) is HALF
        assert here.log.values == {"crr_decision": Decision.TARGET_REACHED}

    def test_the_early_candidate_is_that_of_the_model_at_the_time(self):
        np.testing.assert_array_equal(
            Settled(SubfedavgConfig()).early(site(), -ascending()[::-1], without()), without(9, 21)
        )


def test_hamming_by_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, N)) < 0.5
    places = np.r_[0:10, 12:22]
    assert hamming(first, second, PRUNABLE) == pytest.approx(
        scipy.spatial.distance.hamming(first[places], second[places])
    )
    assert hamming(first, second, []) == 0.0
