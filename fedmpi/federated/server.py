"""The server's part of a round: who is merged with which weight, and what the masks are afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import RunConfig
from fedmpi.errors import TrainingError, WireError
from fedmpi.federated.composition import build
from fedmpi.federated.history import MaskHistory
from fedmpi.federated.weighting import Evidence, Weights
from fedmpi.pruning import density
from fedmpi.sparse import Head, Mask

SCALARS = ("divergence", "images", "norm")
"""The scalars of an update's head, float64 each, in this order."""


@dataclass(frozen=True)
class ServerState:
    """The global model and what is known of every client's mask.

    ``theta`` (``float32[N]``) is owned by the server and overwritten by the merge of the next round. ``previous`` is
    what was sent down last, which every client still has at its mask: lossless values are coded against it. None where
    they are not, or nobody remembers; then they travel by themselves.
    """

    theta: NDArray[np.float32]
    buffers: NDArray[np.float32]
    histories: Mapping[int, MaskHistory]
    previous: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Selection:
    """Which updates are merged, ascending, with their weights; ``skipped`` names the refused ones and says why."""

    merged: list[int]
    weights: Weights
    skipped: dict[int, str]


def refused(heads: Mapping[int, Head], *, norm_limit: float) -> dict[int, str]:
    """Return the clients whose update is not to be merged, with the reason.

    An update whose norm is not finite, or more than ``norm_limit`` times the median of all, would spoil the mean for
    everybody; neither Flower nor NVFLARE checks.
    """
    norms = {c: float(head.scalars[SCALARS.index("norm")]) for c, head in heads.items()}
    finite = [n for n in norms.values() if np.isfinite(n)]
    median = float(np.median(finite)) if finite else np.nan
    reasons = {}
    for client, norm in norms.items():
        if not np.isfinite(norm):
            reasons[client] = f"its norm is {norm}"
        elif norm > norm_limit * median:
            reasons[client] = f"its norm {norm:.3g} is more than {norm_limit:g} times the median {median:.3g}"
    return reasons


def select(heads: Mapping[int, Head], prunable: list[slice], config: RunConfig) -> Selection:
    """Refuse what would spoil the mean, and weight the rest by the method's rule.

    Raises
    ------
    TrainingError
        When an update is refused and ``comm.bad_update`` is ``error``, or when none is left.
    """
    skipped = refused(heads, norm_limit=config.comm.norm_limit)
    merged = [c for c in sorted(heads) if c not in skipped]
    if skipped and (config.comm.bad_update == "error" or not merged):
        reasons = "; ".join(f"client {c}: {reason}" for c, reason in skipped.items())
        message = f"update refused: {reasons} (comm.bad_update and comm.norm_limit decide)"
        raise TrainingError(message)
    return Selection(merged, weigh([heads[c] for c in merged], prunable, config), skipped)


def weigh(heads: list[Head], prunable: list[slice], config: RunConfig) -> Weights:
    """Return the aggregation weights of updates from their heads, by the rule of the method."""
    scalars = np.array([head.scalars for head in heads])
    distances, images = scalars[:, SCALARS.index("divergence")], scalars[:, SCALARS.index("images")]
    pruned = np.array([1 - density(mask_of(head).to_bool(), prunable) for head in heads])
    return build(config).weighting.weigh(Evidence(distances, images, pruned))


def mask_of(head: Head) -> Mask:
    """Return the mask of an update; ``WireError`` when it has none."""
    if head.mask is None:
        message = f"the update of client {head.client} has no mask"
        raise WireError(message)
    return head.mask


def mean_buffers(heads: list[Head], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the weighted mean of the clients' batch-norm statistics, ``float32[B]``, summed in client order."""
    total = np.zeros(heads[0].buffers.size)
    for head, weight in zip(heads, weights, strict=True):
        total += weight * head.buffers
    return total.astype(np.float32)
