"""How much each client counts: KLAW, PRAW and their combination KLPWA (METHOD section 3).

All functions take one value per client and return weights ``float64[clients]`` that sum to one. Where the inputs carry
no information (all zero, or not finite) the weights are uniform; ``klpwa`` says so.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Sign = Literal["gain", "alignment"]
Rule = Literal["inverse_density", "pruned", "kept"]
Mix = Literal["product", "convex"]


@dataclass(frozen=True)
class Weights:
    """Aggregation weights of one round and their factors, each ``float64[clients]`` summing to one.

    ``uniform`` is True when the combination was not usable and all clients count the same.
    """

    klaw: NDArray[np.float64]
    praw: NDArray[np.float64]
    weight: NDArray[np.float64]
    uniform: bool


def normalised(values: ArrayLike) -> tuple[NDArray[np.float64], bool]:
    """Return ``values`` divided by their sum, and False; or uniform weights and True when that means nothing."""
    array = np.asarray(values, np.float64)
    total = array.sum()
    if not np.isfinite(array).all() or (array < 0).any() or not np.isfinite(total) or total <= 0:
        return np.full(array.size, 1 / array.size), True
    return array / total, False


def klaw(divergences: ArrayLike, *, sign: Sign = "gain") -> NDArray[np.float64]:
    """KL-divergence aggregation weights.

    ``divergences`` is v_k = mean KL(P_after || P_before) on the client's fixed batch. ``gain``: v_k / sum v, the weight
    grows with the knowledge gained; ``alignment``: exp(-v_k), normalised [choice between two readings of the paper].
    """
    v = np.asarray(divergences, np.float64)
    return normalised(v if sign == "gain" else np.exp(-v))[0]


def praw(pruned: ArrayLike, *, rule: Rule = "inverse_density") -> NDArray[np.float64]:
    """Pruning-ratio aggregation weights from p_k, the pruned share of the prunable weights, in [0, 1).

    ``inverse_density``: 1 / (1 - p_k) [choice]; ``pruned``: p_k, uniform while nobody pruned; ``kept``: 1 - p_k.
    """
    p = np.asarray(pruned, np.float64)
    raw = {"inverse_density": lambda: 1 / (1 - p), "pruned": lambda: p, "kept": lambda: 1 - p}[rule]()
    return normalised(raw)[0]


def klpwa(
    klaw_weights: NDArray[np.float64], praw_weights: NDArray[np.float64], *, mix: Mix = "product", alpha: float = 0.5
) -> Weights:
    """Combine the two: ``product`` KLAW_k PRAW_k / sum_j KLAW_j PRAW_j, or ``convex`` alpha KLAW + (1 - alpha) PRAW."""
    combined = klaw_weights * praw_weights if mix == "product" else alpha * klaw_weights + (1 - alpha) * praw_weights
    weight, uniform = normalised(combined)
    return Weights(klaw_weights, praw_weights, weight, uniform)
