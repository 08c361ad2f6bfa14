"""Unstructured magnitude pruning with exact counts (METHOD section 4; after LotteryFL and Sub-FedAvg)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scope = Literal["layer", "global"]


def density(mask: NDArray[np.bool_], prunable: Sequence[slice]) -> float:
    """Return the kept share of the prunable weights, in [0, 1]; 1.0 when nothing is prunable."""
    total = sum(s.stop - s.start for s in prunable)
    return sum(int(np.count_nonzero(mask[s])) for s in prunable) / total if total else 1.0


def prune(
    theta: NDArray[np.float32],
    mask: NDArray[np.bool_],
    prunable: Sequence[slice],
    *,
    step: float,
    target: float,
    scope: Scope = "layer",
) -> NDArray[np.bool_]:
    """Return ``mask`` without the smallest ``step`` of the surviving weights, never beyond ``target``.

    Parameters
    ----------
    theta
        Parameters, ``float32[N]``.
    mask
        Current mask, ``bool[N]``; the result is a subset of it.
    prunable
        Slices of the conv and linear weights in the flat vector.
    step
        Share of the surviving weights that one pruning event removes, in (0, 1); the count is rounded down.
    target
        Pruned share of all prunable weights at which pruning ends, in (0, 1).
    scope
        ``layer``: the share is taken in every tensor alone; ``global``: over all prunable weights together.

    Returns
    -------
    ``bool[N]``, a new array. Equal magnitudes are removed in index order, so that the kept count is exact.
    """
    result = mask.copy()
    groups = [[s] for s in prunable] if scope == "layer" else [list(prunable)]
    for group in groups:
        alive = np.concatenate([np.flatnonzero(result[s]) + s.start for s in group]) if group else np.empty(0, np.intp)
        total = sum(s.stop - s.start for s in group)
        result[alive[_smallest(np.abs(theta[alive]), _removals(alive.size, total, step, target))]] = False
    return result


def _removals(alive: int, total: int, step: float, target: float) -> int:
    """Return how many of ``alive`` weights go: a ``step`` of them, but at least ``(1 - target) total`` stay."""
    floor = total - int(target * total)
    return max(0, min(int(step * alive), alive - floor))


def _smallest(magnitude: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the positions of the ``count`` smallest entries; among equals the earlier ones."""
    if count == 0:
        return np.empty(0, np.intp)
    threshold = np.partition(magnitude, count - 1)[count - 1]
    below = np.flatnonzero(magnitude < threshold)
    equal = np.flatnonzero(magnitude == threshold)[: count - below.size]
    return np.concatenate([below, equal])
