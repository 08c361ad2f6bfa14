"""Which weights a client keeps: the magnitude criterion, its schedule, and cross-round recovery (CRR).

Masks are ``bool[N]`` arrays over the flat parameter vector, True = kept; entries outside the prunable slices stay True.
"""

from fedmpi.pruning.magnitude import density, prune
from fedmpi.pruning.recovery import CrrState, Decision, decide_pruning, decide_recovery
from fedmpi.pruning.schedule import pruning_due

__all__ = ["CrrState", "Decision", "decide_pruning", "decide_recovery", "density", "prune", "pruning_due"]
