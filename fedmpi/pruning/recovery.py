"""CRR, cross-round recovery: the two decisions, as functions of probe values (METHOD section 5).

The paper says "two-stage" and "halts pruning when necessary"; the details are our choice:

Stage 1, after local training. A candidate mask m' is accepted iff ``A(theta (.) m') >= A(theta) - tau1``.
Stage 2, when the next model arrives. ``A(theta_G (.) m_k)`` is compared with the best value with which a *received*
model ever passed. Below it by more than ``tau2``, the client returns to the mask of its last good round. We compare
received with received: a locally trained model scores higher on its own pseudo-labels than the average that comes back,
so a comparison across the two would recover in every round.
"""

import math
from dataclasses import dataclass
from enum import IntEnum


class Decision(IntEnum):
    """What became of pruning at one client in one round; the values are part of the run file."""

    OFF = 0
    ACCEPTED = 1
    HALTED = 2
    RECOVERED = 3
    TARGET_REACHED = 4


@dataclass(frozen=True)
class CrrState:
    """What a client remembers for CRR: the best probe value of a received model that passed; NaN before the first."""

    best: float = math.nan


def decide_pruning(before: float, after: float, *, tau1: float) -> bool:
    """Return whether the candidate mask is accepted (stage 1).

    ``before`` and ``after`` are the probe values A of the trained model without and with the candidate mask, higher is
    better. A probe that could not be measured (NaN) accepts: there is nothing to hold against the candidate.
    """
    if math.isnan(before) or math.isnan(after):
        return True
    return after >= before - tau1


def decide_recovery(received: float, state: CrrState, *, tau2: float) -> tuple[bool, CrrState]:
    """Return whether to recover, and the state after this round's stage 2.

    ``received`` is the probe value of the personalized model as received; NaN (no probe yet) never recovers.
    """
    if math.isnan(received):
        return False, state
    if math.isnan(state.best) or received >= state.best - tau2:
        return False, CrrState(best=max(received, state.best) if not math.isnan(state.best) else received)
    # The bar is lowered to what is: else one lucky round would make the client recover for ever.
    return True, CrrState(best=received)
