"""CRR's decisions on scripted probe values, worked by hand from METHOD section 5."""

import math

import pytest

from fedmpi.pruning import CrrState, decide_pruning, decide_recovery, pruning_due


@pytest.mark.parametrize(
    ("before", "after", "accepted"),
    [
        (0.50, 0.50, True),
        (0.50, 0.491, True),
        (0.50, 0.489, False),
        (0.50, 0.70, True),
        (math.nan, 0.1, True),
        (0.5, math.nan, True),
    ],
)
def test_stage_one(before, after, accepted):
    assert decide_pruning(before, after, tau1=0.01) is accepted


def test_stage_two_sequence():
    state, recovered = CrrState(), []
    for value in (0.30, 0.40, 0.395, 0.37, 0.37, 0.36, 0.355):
        recover, state = decide_recovery(value, state, tau2=0.01)
        recovered.append(recover)
    # 0.37 is 0.03 below the best (0.40): recover once, then 0.37 is the bar; 0.36 and 0.355 are not both within it
    assert recovered == [False, False, False, True, False, False, True]
    assert state.best == 0.355


def test_stage_two_without_a_probe():
    state = CrrState(best=0.4)
    assert decide_recovery(math.nan, state, tau2=0.01) == (False, state)


@pytest.mark.parametrize(
    ("round", "density", "recovered", "due"),
    [
        (0, 1.0, False, False),
        (2, 1.0, False, True),
        (2, 0.5004, False, False),
        (2, 0.502, False, True),
        (2, 0.9, True, False),
    ],
)
def test_schedule(round, density, recovered, due):
    assert pruning_due(round, density, enabled=True, start_round=2, target=0.5, recovered=recovered) is due
    assert not pruning_due(round, density, enabled=False, start_round=2, target=0.5, recovered=recovered)
