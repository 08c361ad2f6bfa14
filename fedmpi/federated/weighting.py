"""How much each client counts: KLAW, PRAW and their combination KLPWA (METHOD section 3), and simpler rules.

All functions take one value per client and return weights ``float64[clients]`` that sum to one. Where the inputs carry
no information (all zero, or not finite) the weights are uniform; ``klpwa`` says so.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional

from fedmpi.config import KlawConfig, KlpwaConfig, PrawConfig
from fedmpi.reid.losses import kl_divergence

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


@dataclass(frozen=True)
class Evidence:
    """What the server knows of the updates that it weights, each ``float64[clients]``.

    ``distances`` are the clients' measures of how far they moved, ``images`` their numbers of training images,
    ``pruned`` the pruned shares of their prunable weights.
    """

    distances: NDArray[np.float64]
    images: NDArray[np.float64]
    pruned: NDArray[np.float64]


class Weighting(Protocol):
    """A rule for the server's weights. ``measures`` tells whether it needs the clients' ``distance``."""

    @property
    def measures(self) -> bool:
        """Whether clients measure how far they moved."""

    def distance(self, after: torch.Tensor, before: torch.Tensor) -> float:
        """Return how far a client moved, from embeddings ``float32[n, D]`` of its fixed images, n > 0."""

    def weigh(self, evidence: Evidence) -> Weights:
        """Return the weights of the updates."""


class _Unmeasured:
    """A rule that does not ask how far a client moved."""

    measures = False

    def distance(self, after: torch.Tensor, before: torch.Tensor) -> float:  # noqa: ARG002  (nothing is measured)
        """Return 0."""
        return 0.0


class Uniform(_Unmeasured):
    """Every client counts the same (LotteryFL, Sub-FedAvg: the mean over the holders)."""

    def weigh(self, evidence: Evidence) -> Weights:
        """Return equal weights."""
        return _plain(np.ones(evidence.images.size))


class ByImages(_Unmeasured):
    """A client counts by its number of training images (FedAvg)."""

    def weigh(self, evidence: Evidence) -> Weights:
        """Return n_k / sum n."""
        return _plain(evidence.images)


class Cdw:
    """Cosine distance weights (FedPav, FedCAPR): by the mean of 1 - cos of embeddings after and before training."""

    measures = True

    def distance(self, after: torch.Tensor, before: torch.Tensor) -> float:
        """Return the mean of 1 - cos over the images."""
        return _cosine_distance(after, before)

    def weigh(self, evidence: Evidence) -> Weights:
        """Return d_k / sum d."""
        return _plain(evidence.distances)


@dataclass(frozen=True)
class Klpwa:
    """FedKLPR's weights; KLAW off: by number of images, PRAW off: every client the same factor."""

    klaw: KlawConfig
    praw: PrawConfig
    klpwa: KlpwaConfig
    measures = True

    def distance(self, after: torch.Tensor, before: torch.Tensor) -> float:
        """Return v_k = mean KL(P_after || P_before), or the mean of 1 - cos."""
        if self.klaw.measure == "cosine":
            return _cosine_distance(after, before)
        return float(kl_divergence(after, before, temperature=self.klaw.temperature))

    def weigh(self, evidence: Evidence) -> Weights:
        """Return KLPWA's weights and their two factors."""
        gained = klaw(evidence.distances, sign=self.klaw.sign) if self.klaw.enabled else normalised(evidence.images)[0]
        compact = (
            praw(evidence.pruned, rule=self.praw.rule)
            if self.praw.enabled
            else normalised(np.ones(evidence.pruned.size))[0]
        )
        return klpwa(gained, compact, mix=self.klpwa.mix, alpha=self.klpwa.alpha)


def _cosine_distance(after: torch.Tensor, before: torch.Tensor) -> float:
    # Rounding can make the cosine of equal embeddings exceed 1.
    return max(0.0, float((1 - functional.cosine_similarity(after, before, dim=1)).mean()))


def _plain(values: NDArray[np.float64]) -> Weights:
    """Return weights proportional to ``values``, with a uniform second factor."""
    weight, uniform = normalised(values)
    return Weights(weight, np.full(weight.size, 1 / weight.size), weight, uniform)
