"""What FedKLPR adds to its base: ``kll``, ``klaw``, ``praw``, ``klpwa``, ``sas``, ``pruning``, ``crr``."""

from typing import Literal

from fedmpi.config.base import Number, Section, Switch, Whole, key

_UNREAD = "the paper's body could not be read"


class KllConfig(Section):
    """KLL: KL divergence to the model received this round, added to the local loss."""

    enabled: Switch = key(default=True, description="Switch for ablation.", source="FedKLPR v1")
    weight: Number = key(
        0.13,
        "Weight lambda of the KL term.",
        source="[choice] matches FedCAPR's 0.13 (1 - cos): with embeddings of unit variance KL is about 1 - cos",
        ge=0.0,
        le=1000.0,
    )
    temperature: Number = key(
        1.0,
        "Temperature T of both softmaxes.",
        source=f"[choice] {_UNREAD}",
        gt=0.0,
        le=1000.0,
    )
    features: Literal["embedding", "normalized"] = key(
        "embedding",
        "What enters the softmax: embedding = the BN-neck output as it is; normalized = the same L2-normalised, "
        "where KL is about (1 - cos)/(D T^2) and vanishes at T = 1 (T near 1/sqrt(D) is meant for it).",
        source=f"[choice] {_UNREAD}",
    )
    start_round: Whole = key(
        1,
        "First round with the KL term; in round 0 the received model is not trained yet.",
        source="FedCAPR code",
        unit="round",
        ge=0,
    )


class KlawConfig(Section):
    """KLAW: aggregation weight from the KL divergence between a client's model after and before local training."""

    enabled: Switch = key(
        default=True,
        description="Switch for ablation; off = a client weighs by its number of images, as in FedAvg.",
        source="FedKLPR v1",
    )
    sign: Literal["gain", "alignment"] = key(
        "gain",
        "gain = a client whose model moved more weighs more; alignment = exp(-KL), one that moved less weighs more.",
        source="[choice] reviews say 'knowledge gained', the abstract 'alignment with the global model'; "
        "gain is FedCAPR's rule with 1 - cos replaced by KL",
    )
    measure: Literal["kl", "cosine"] = key(
        "kl",
        "How the movement of a client is measured: kl, or cosine = the mean of 1 - cos of the embeddings, which makes "
        "KLAW with `sign: gain` the cosine distance weights (CDW) of FedPav and FedCAPR.",
        source="FedKLPR v1",
    )
    images: Whole = key(
        32,
        "Training images of the fixed batch on which it is measured (the first ones, test transform).",
        source="[choice] after FedCAPR's fixed batch",
        unit="images",
        ge=1,
        le=65_536,
    )
    temperature: Number = key(1.0, "Temperature of the softmaxes.", source=f"[choice] {_UNREAD}", gt=0.0, le=1000.0)


class PrawConfig(Section):
    """PRAW: aggregation weight from the pruned share p of a client."""

    enabled: Switch = key(
        default=True, description="Switch for ablation; off = equal PRAW factors.", source="FedKLPR v1"
    )
    rule: Literal["inverse_density", "pruned", "kept"] = key(
        "inverse_density",
        "inverse_density = 1/(1 - p); pruned = p, equal when nobody has pruned; kept = 1 - p.",
        source="[choice] no formula was readable; equal when nothing is pruned, favours compact clients, excludes none",
    )


class KlpwaConfig(Section):
    """KLPWA: how KLAW and PRAW make one weight."""

    mix: Literal["product", "convex"] = key(
        "product",
        "product = KLAW PRAW, normalised over clients; convex = alpha KLAW + (1 - alpha) PRAW.",
        source=f"[choice] {_UNREAD}",
    )
    alpha: Number = key(
        0.5,
        "Share of KLAW in the convex mix; unused in the product.",
        source=f"[choice] {_UNREAD}",
        unit="share",
        ge=0.0,
        le=1.0,
    )


class SasConfig(Section):
    """SAS: sparse-activation skipping."""

    enabled: Switch = key(
        default=True,
        description="Average every weight over the clients that keep it. false = a pruned weight counts as zero in a "
        "plain mean.",
        source="FedKLPR v1",
    )


class PruningConfig(Section):
    """Unstructured magnitude pruning of conv and linear weights; batch norms, neck and biases never."""

    enabled: Switch = key(
        default=True, description="Switch for ablation; off = dense models both ways.", source="FedKLPR v1"
    )
    step: Number = key(
        0.05,
        "Share of the still-alive weights that one pruning event removes.",
        source="[choice] after LotteryFL and Sub-FedAvg; 20 rounds of 5 % reproduce the paper's saving of 33-38 %",
        unit="share",
        gt=0.0,
        lt=1.0,
    )
    target: Number = key(
        0.5,
        "Pruned share of the prunable weights at which pruning ends.",
        source="[choice] after LotteryFL and Sub-FedAvg",
        unit="share",
        gt=0.0,
        lt=1.0,
    )
    scope: Literal["layer", "global"] = key(
        "layer",
        "layer = the share is taken of every tensor; global = of all prunable weights together.",
        source="[choice] after LotteryFL and Sub-FedAvg",
    )
    start_round: Whole = key(
        0, "First round with a pruning event.", source="[choice] after Sub-FedAvg", unit="round", ge=0
    )


class CrrConfig(Section):
    """CRR: accept a pruning step only if the client's probe holds, recover when the merged model has lost.

    The probe (`probe`, `holdout`, `probe_images`) also serves the methods lotteryfl and subfedavg.
    """

    enabled: Switch = key(
        default=True,
        description="Switch for ablation; off = every pruning step is accepted. Recovers nothing where pruning is off.",
        source="FedKLPR v1",
    )
    probe: Literal["pseudo", "loss", "test"] = key(
        "pseudo",
        "What is measured: pseudo = retrieval mAP on held-out training images with this round's clusters as truth; "
        "loss = minus their cross-entropy against the cluster centres; test = rank-1 on the client's test set, as "
        "FedCAPR's own selection does. "
        "test leaks labels: log and report say so.",
        source="[choice] the two stages are the paper's, the measure is ours",
    )
    tau1: Number = key(
        0.01,
        "Stage 1: loss of the probe, after pruning against before, up to which the step is accepted.",
        source=f"[choice] {_UNREAD}",
        unit="share (0.01 = 1 point)",
        ge=0.0,
        le=1.0,
    )
    tau2: Number = key(
        0.01,
        "Stage 2: loss of the probe against the best accepted one up to which the client does not recover.",
        source=f"[choice] {_UNREAD}",
        unit="share (0.01 = 1 point)",
        ge=0.0,
        le=1.0,
    )
    holdout: Number = key(
        0.2,
        "Share of the client's training images held out for the probes pseudo and loss; the same in every round.",
        source=f"[choice] {_UNREAD}",
        unit="share",
        gt=0.0,
        lt=1.0,
    )
    probe_images: Whole = key(
        512,
        "Most images of a probe; a larger holdout is cut to it.",
        source="[choice] bounds the cost of the probe",
        unit="images",
        ge=2,
        le=1_000_000,
    )
