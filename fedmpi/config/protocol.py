"""How retrieval is scored: ``evaluation.protocol``. The defaults are the field's usual protocol."""

from typing import Literal

from fedmpi.config.base import Number, Section, Switch, Whole, key


class RerankConfig(Section):
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017); a query's score then depends on the other queries."""

    enabled: Switch = key(default=False, description="Re-rank before scoring.", source="fedmpi")
    k1: Whole = key(
        20, "Neighbours of the k-reciprocal sets (Zhong et al.: 20).", source="fedmpi", unit="images", ge=1, le=1000
    )
    k2: Whole = key(
        6, "Neighbours of the local query expansion (Zhong et al.: 6).", source="fedmpi", unit="images", ge=1, le=1000
    )
    weight: Number = key(
        0.3,
        "Share of the original distance (Zhong et al.: 0.3); the rest is Jaccard.",
        source="fedmpi",
        unit="share",
        ge=0.0,
        le=1.0,
    )


class ProtocolConfig(Section):
    """Variants of retrieval scores that are around in the field. The run file names the one that was used."""

    ap: Literal["mean", "trapezoid"] = key(
        "mean",
        "Average precision: mean = mean of the precision at the correct answers (Market-1501's Python evaluation, "
        "torchreid, FedCAPR); trapezoid = area under the precision-recall polygon (Oxford, FedReID), a little lower.",
        source="fedmpi",
    )
    unmatched: Literal["skip", "zero"] = key(
        "skip",
        "Queries without any correct answer by another camera: skip = they enter no mean; zero = they count as 0 "
        "(FedReID).",
        source="fedmpi",
    )
    flip: Switch = key(
        default=False,
        description="Add the embedding of the mirrored image to that of the image (FedReID). Takes twice the time.",
        source="fedmpi",
    )
    rerank: RerankConfig = RerankConfig()
