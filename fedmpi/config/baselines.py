"""Which method runs, ``method``, and the keys of those that FedKLPR is compared with."""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Strict
from pydantic_core import PydanticCustomError

import fedmpi
from fedmpi.config.base import Number, Section, Whole, key

FEDKLPR = "fedklpr"
SWITCHES = ("kll", "klaw", "praw", "sas", "pruning", "crr")
"""Sections whose ``enabled`` takes a part of FedKLPR away; every other method has them off."""


@cache
def method_names() -> tuple[str, ...]:
    """Return the names of all methods, sorted: the files in fedmpi/federated/methods/.

    They are listed and not imported, because a run description is read without torch.
    """
    folder = Path(fedmpi.__file__).parent / "federated" / "methods"
    return tuple(sorted(file.stem for file in folder.glob("[!_]*.py")))


def _known(name: str) -> str:
    if name not in method_names():
        raise PydanticCustomError("method", "must be one of {valid}", {"valid": ", ".join(method_names())})
    return name


MethodName = Annotated[str, Strict(), AfterValidator(_known)]


class FedproxConfig(Section):
    """FedProx: a squared distance to the received model, added to the local loss."""

    mu: Number = key(
        0.01,
        "Factor mu of the penalty mu/2 |theta - theta_G|^2.",
        source="[choice] FedProx tunes it among 1, 0.1, 0.01 and 0.001",
        ge=0.0,
        le=1000.0,
    )


class FedpavConfig(Section):
    """FedPav: federated averaging of the backbone."""

    weights: Literal["images", "cdw"] = key(
        "images",
        "images = by number of training images; cdw = by cosine distance, the mean of 1 - cos between the embeddings "
        "of `klaw.images` training images after and before local training.",
        source="[choice] FedReID's plain FedPav; cdw is its refinement",
    )


class FedcaprConfig(Section):
    """FedCAPR: a cosine penalty to the received model; weights by cosine distance over `klaw.images` images."""

    weight: Number = key(
        0.13, "Weight of the penalty 1 - cos, averaged over the batch.", source="FedCAPR code", ge=0.0, le=1000.0
    )
    start_round: Whole = key(1, "First round with the penalty.", source="FedCAPR code", unit="round", ge=0)


class LotteryflConfig(Section):
    """LotteryFL: prune before training and rewind to the initial weights. The probe is that of `crr`."""

    threshold: Number = key(
        0.5,
        "A client prunes when its probe of the received model is above this.",
        source="[choice] LotteryFL's accuracy threshold, here of a probe without labels",
        unit="share",
        ge=0.0,
        le=1.0,
    )
    step: Number = key(
        0.2,
        "Share of the alive weights of a layer that goes.",
        source="[choice] after LotteryFL's code",
        unit="share",
        gt=0.0,
        lt=1.0,
    )
    target: Number = key(
        0.5,
        "Pruned share of all prunable weights at which pruning ends; never exceeded.",
        source="[choice] after LotteryFL's code",
        unit="share",
        gt=0.0,
        lt=1.0,
    )


class SubfedavgConfig(Section):
    """Sub-FedAvg: prune what two candidate masks of a round settle on. The probe is that of `crr`."""

    step: Number = key(
        0.1,
        "Share of the alive weights of a layer that goes.",
        source="[choice] after Sub-FedAvg's code",
        unit="share",
        gt=0.0,
        lt=1.0,
    )
    target: Number = key(
        0.5,
        "Pruned share of all prunable weights at which pruning ends; never exceeded. Sub-FedAvg reports 0.3 and 0.5.",
        source="[choice] of its two",
        unit="share",
        gt=0.0,
        lt=1.0,
    )
    hamming: Number = key(
        1e-4,
        "A client prunes only when the candidate masks after the first and the last local epoch differ in more than "
        "this share of the prunable weights.",
        source="[choice] after Sub-FedAvg's code",
        unit="share",
        ge=0.0,
        le=1.0,
    )
    tolerance: Number = key(
        0.0,
        "Loss of the probe, pruned against unpruned, up to which the candidate is kept.",
        source="[choice] the probe must hold",
        unit="share (0.01 = 1 point)",
        ge=0.0,
        le=1.0,
    )
