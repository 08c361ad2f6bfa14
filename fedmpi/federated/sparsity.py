"""Which weights a client keeps, and when it decides: the policies of the methods (METHOD sections 4 to 6).

A policy is asked three times in a round: before local training (`begin`), after the first local epoch (`early`) and
after the last (`finish`). It carries nothing from round to round: masks are in the `MaskHistory`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import CrrConfig, LotteryflConfig, PruningConfig, SasConfig, SubfedavgConfig
from fedmpi.federated.measurements import Measurements
from fedmpi.pruning import Decision, decide_pruning, density, prune, pruning_due
from fedmpi.pruning.schedule import ROUNDING

Theta = NDArray[np.float32]
Kept = NDArray[np.bool_]


@dataclass(frozen=True)
class Site:
    """What a policy may look at: one client in one round.

    Attributes
    ----------
    round
        Number of the round.
    recovered
        Whether the round began with a recovery of CRR.
    prunable
        Slices of the flat vector that may be pruned.
    measure
        From (theta ``float32[N]``, buffers ``float32[B]``) to the probe A, higher is better, NaN = not measurable. It
        uses the clusters known at this time: those of the last finished local training.
    initial
        Returns the untrained parameters, ``float32[N]``.
    log
        Takes ``crr_decision`` and the probe's values.
    """

    round: int
    recovered: bool
    prunable: Sequence[slice]
    measure: Callable[[Theta, Theta], float]
    initial: Callable[[], Theta]
    log: Measurements

    def decide(self, decision: Decision, **probes: float) -> None:
        """Write down what became of pruning, and the probe's values behind it."""
        self.log.values |= {"crr_decision": decision, **probes}


class Dense:
    """Nothing is ever pruned; the base of all policies.

    Attributes
    ----------
    probes
        Whether some training images are held out for the probe.
    recovers
        Whether a received model may be answered by a recovery (stage 2 of CRR).
    skips
        Whether a pruned weight is left out of the mean (SAS) or counts as a zero.
    watches
        Whether `early` is asked.
    """

    probes = False
    recovers = False
    skips = True
    watches = False

    def begin(self, site: Site, theta: Theta, buffers: Theta, kept: Kept) -> tuple[Theta, Kept]:  # noqa: ARG002
        """Return the model to train and its mask, from the received ones."""
        return theta, kept

    def early(self, site: Site, theta: Theta, kept: Kept) -> Kept | None:  # noqa: ARG002
        """Return what `finish` is to know of the model after the first local epoch."""
        return None

    def finish(self, site: Site, theta: Theta, buffers: Theta, kept: Kept, early: Kept | None) -> Kept:  # noqa: ARG002
        """Return the mask to send, from the trained model and its mask."""
        site.decide(Decision.OFF)
        return kept


class Gradual(Dense):
    """FedKLPR: one step after every training, until the target; CRR may halt it, and give weights back."""

    def __init__(self, pruning: PruningConfig, crr: CrrConfig, sas: SasConfig) -> None:
        self._pruning, self._crr = pruning, crr
        self.probes = crr.enabled
        self.recovers = crr.enabled and pruning.enabled  # what was never pruned cannot be given back
        self.skips = sas.enabled

    def finish(self, site: Site, theta: Theta, buffers: Theta, kept: Kept, early: Kept | None) -> Kept:  # noqa: ARG002
        """Return the candidate if it is due and stage 1 of CRR accepts it, else the current mask."""
        c, share = self._pruning, density(kept, site.prunable)
        if not self._due(site, share):
            site.decide(self._idle(share, recovered=site.recovered))
            return kept
        with site.log.time("prune"):
            candidate = prune(theta, kept, site.prunable, step=c.step, target=c.target, scope=c.scope)
        if not self._crr.enabled:
            site.decide(Decision.ACCEPTED)
            return candidate
        return _tried(site, theta, buffers, kept, candidate, tolerance=self._crr.tau1)

    def _due(self, site: Site, share: float) -> bool:
        c = self._pruning
        return pruning_due(
            site.round,
            share,
            enabled=c.enabled,
            start_round=c.start_round,
            target=c.target,
            recovered=site.recovered,
        )

    def _idle(self, share: float, *, recovered: bool) -> Decision:
        if recovered:
            return Decision.RECOVERED
        return Decision.TARGET_REACHED if self._pruning.enabled and share < 1 else Decision.OFF


class Lottery(Dense):
    """LotteryFL: prune before training what is good enough, and train the survivors from their initial weights."""

    probes = True

    def __init__(self, config: LotteryflConfig) -> None:
        self._config = config

    def begin(self, site: Site, theta: Theta, buffers: Theta, kept: Kept) -> tuple[Theta, Kept]:
        """Return the initial weights behind a smaller mask, or what was received."""
        c = self._config
        if _reached(kept, site.prunable, c.target):
            site.decide(Decision.TARGET_REACHED)
            return theta, kept
        value = site.measure(theta, buffers)
        # What cannot be measured (no clusters yet) is not known to be good.
        if not value > c.threshold:
            site.decide(Decision.HALTED, crr_before=value)
            return theta, kept
        with site.log.time("prune"):
            smaller = prune(theta, kept, site.prunable, step=c.step, target=c.target)
        site.decide(Decision.ACCEPTED, crr_before=value)
        return site.initial() * smaller, smaller

    def finish(self, site: Site, theta: Theta, buffers: Theta, kept: Kept, early: Kept | None) -> Kept:  # noqa: ARG002
        """Return the mask that was trained with."""
        return kept


class Settled(Dense):
    """Sub-FedAvg: prune when the masks after the first and the last epoch still differ, and keep it if A holds."""

    probes = True
    watches = True

    def __init__(self, config: SubfedavgConfig) -> None:
        self._config = config

    def early(self, site: Site, theta: Theta, kept: Kept) -> Kept:
        """Return the candidate of the first local epoch."""
        with site.log.time("prune"):
            return self._candidate(site, theta, kept)

    def finish(self, site: Site, theta: Theta, buffers: Theta, kept: Kept, early: Kept | None) -> Kept:
        """Return the candidate of the last local epoch if all conditions hold, else the current mask."""
        c = self._config
        if _reached(kept, site.prunable, c.target):
            site.decide(Decision.TARGET_REACHED)
            return kept
        with site.log.time("prune"):
            late = self._candidate(site, theta, kept)
        if early is None or hamming(early, late, site.prunable) <= c.hamming:
            site.decide(Decision.HALTED)
            return kept
        return _tried(site, theta, buffers, kept, late, tolerance=c.tolerance)

    def _candidate(self, site: Site, theta: Theta, kept: Kept) -> Kept:
        return prune(theta, kept, site.prunable, step=self._config.step, target=self._config.target)


def hamming(first: Kept, second: Kept, prunable: Sequence[slice]) -> float:
    """Return the share of the prunable entries in which two masks differ, in [0, 1]; 0 when nothing is prunable."""
    total = sum(s.stop - s.start for s in prunable)
    return sum(int(np.count_nonzero(first[s] != second[s])) for s in prunable) / total if total else 0.0


def _reached(kept: Kept, prunable: Sequence[slice], target: float) -> bool:
    return 1.0 - density(kept, prunable) >= target - ROUNDING


def _tried(site: Site, theta: Theta, buffers: Theta, kept: Kept, candidate: Kept, *, tolerance: float) -> Kept:
    """Return the candidate if the probe holds with it, else the current mask; both values go to the log."""
    before, after = site.measure(theta, buffers), site.measure(theta * candidate, buffers)
    accepted = decide_pruning(before, after, tau1=tolerance)
    site.decide(Decision.ACCEPTED if accepted else Decision.HALTED, crr_before=before, crr_after=after)
    return candidate if accepted else kept
