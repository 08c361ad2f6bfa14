"""When a client may prune (METHOD section 4)."""

# A layer's removals are rounded down, so the last steps stop a few weights short of the target.
ROUNDING = 1e-3


def pruning_due(round: int, density: float, *, enabled: bool, start_round: int, target: float, recovered: bool) -> bool:
    """Return whether this round's pruning event takes place.

    It does not before ``start_round``, once the target (pruned share) is reached, and in a round that began with a
    recovery: what has just been given back is not taken away again before it was trained.
    """
    return enabled and not recovered and round >= start_round and (1.0 - density) < target - ROUNDING
