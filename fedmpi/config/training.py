"""Network, federation and the local recipe: ``model``, ``federation``, ``local``, ``clustering``, ``loss``."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from fedmpi.config.base import Number, OptionalPath, Problem, Section, Switch, Whole, key


class ModelConfig(Section):
    """The backbone."""

    arch: Literal["resnet18", "resnet34", "resnet50"] = key(
        "resnet50",
        "Backbone from torchvision with a BN-neck on the pooled features; embeddings of 512, 512 or 2048 numbers. "
        "The papers use resnet50 and resnet34; resnet18 for small runs is a [choice].",
        source="FedKLPR v1",
    )
    weights: OptionalPath = key(
        None,
        "Local file with pretrained backbone weights (torchvision's state dict as .pth or .safetensors). "
        "null = random weights drawn from `run.seed`; FedCAPR starts from ImageNet. Nothing is ever downloaded.",
        source="fedmpi",
    )
    last_stride: Literal[1, 2] = key(
        1,
        "Stride of the last stage; 1 doubles the height and width of the last feature map.",
        source="FedCAPR code",
        unit="pixel",
    )
    stem_relu: Switch = key(
        default=True,
        description="Keep the ReLU between the stem's batch norm and max pooling. FedCAPR's network has none (false).",
        source="[choice] torchvision's stem",
    )


class FederationConfig(Section):
    """The federation."""

    rounds: Whole = key(
        20,
        "Communication rounds, numbered from 0. The last one follows the `local.last_round_*` schedule.",
        source="FedCAPR code",
        unit="rounds",
        ge=1,
        le=100_000,
    )
    fraction: Number = key(
        1.0,
        "Share of the clients that take part in a round, at least one client; they are drawn anew every round from "
        "`run.seed`. The others send and receive nothing, and keep what they have.",
        source="fedmpi",
        unit="share",
        gt=0.0,
        le=1.0,
    )
    state_memory_mb: Number = key(
        0.0,
        "What the clients of a rank may hold in its memory: their masks, models of their own, and what those that take "
        "part receive and send. The rest lies in files of `federation.state_dir`, the longest unused first. 0 = no "
        "limit, no files. Never changes results.",
        source="fedmpi",
        unit="MB (1e6 byte)",
        ge=0.0,
        le=1e9,
        output_only=True,
    )
    state_dir: OptionalPath = key(
        None,
        "Folder for those files, on a disk of the node. They have no names there and are gone with the process, "
        "however it ends. null = the system's folder for temporary files (`TMPDIR`). A relative path starts at the "
        "working directory, `~` is expanded.",
        source="fedmpi",
        output_only=True,
    )


class AugmentConfig(Section):
    """Augmentation of training images."""

    flip: Number = key(
        0.5, "Probability of a horizontal flip.", source="FedCAPR code", unit="probability", ge=0.0, le=1.0
    )
    pad: Whole = key(
        10,
        "Zero padding on every side before a random crop back to height x width. 0 = no crop.",
        source="FedCAPR code",
        unit="pixel",
        ge=0,
        le=512,
    )
    erase: Number = key(
        0.5, "Probability of random erasing.", source="FedCAPR code", unit="probability", ge=0.0, le=1.0
    )


class LocalConfig(Section):
    """Local training of one round; every round starts a fresh Adam."""

    epochs: Whole = key(
        5,
        "Local epochs of every round but the last; each starts with a new clustering.",
        source="FedCAPR code",
        unit="local epochs",
        ge=1,
        le=10_000,
    )
    last_round_epochs: Whole = key(
        50, "Local epochs of the last round.", source="FedCAPR code", unit="local epochs", ge=1, le=10_000
    )
    batch_size: Whole = key(
        32,
        "Images per training batch; a multiple of `local.images_per_proxy`.",
        source="FedCAPR code",
        unit="images",
        ge=2,
        le=65_536,
    )
    images_per_proxy: Whole = key(
        4,
        "Images that the sampler draws of each proxy, a (camera, cluster) pair.",
        source="FedCAPR code",
        unit="images",
        ge=1,
        le=1024,
    )
    lr: Number = key(3.5e-4, "Learning rate of Adam.", source="FedCAPR code", gt=0.0, le=10.0)
    lr_late: Number = key(
        3.5e-5, "Learning rate from round `local.lr_late_round` on.", source="FedCAPR code", gt=0.0, le=10.0
    )
    lr_late_round: Whole = key(
        5,
        "First round with `local.lr_late`. A number of at least `federation.rounds` = never.",
        source="FedCAPR code",
        unit="round",
        ge=0,
    )
    weight_decay: Number = key(5e-4, "L2 penalty inside Adam's gradient.", source="FedCAPR code", ge=0.0, le=1.0)
    last_round_warmup_epochs: Whole = key(
        5,
        "Local epochs of the last round over which the learning rate climbs linearly to its full value. 0 = none.",
        source="FedCAPR code",
        unit="local epochs",
        ge=0,
        le=10_000,
    )
    last_round_warmup_factor: Number = key(
        0.01,
        "Factor on the learning rate at the first warm-up epoch of the last round.",
        source="FedCAPR code",
        unit="factor",
        gt=0.0,
        le=1.0,
    )
    last_round_decay_epochs: tuple[Whole, ...] = key(
        (20, 40),
        "Local epochs of the last round, numbered from 0, at which the learning rate is multiplied by "
        "`local.last_round_decay`; increasing. Empty = never.",
        source="FedCAPR code",
        unit="local epochs",
    )
    last_round_decay: Number = key(
        0.1, "Factor of each such step.", source="FedCAPR code", unit="factor", gt=0.0, le=1.0
    )
    augment: AugmentConfig = AugmentConfig()

    def problems(self) -> Iterator[Problem]:
        """Check that batches hold whole proxies and that the schedule moves forward."""
        if self.batch_size % self.images_per_proxy:
            yield (
                "batch_size",
                f"must be a multiple of local.images_per_proxy = {self.images_per_proxy}, got {self.batch_size}",
            )
        epochs = self.last_round_decay_epochs
        if any(epoch < 1 for epoch in epochs):
            yield "last_round_decay_epochs", f"must all be at least 1, got {list(epochs)}"
        elif any(after <= before for before, after in pairwise(epochs)):
            yield "last_round_decay_epochs", f"must increase, got {list(epochs)}"


class ClusteringConfig(Section):
    """Pseudo labels: k-reciprocal Jaccard distance and DBSCAN at the start of every local epoch."""

    k1: Whole = key(
        20, "Neighbours of the k-reciprocal sets.", source="FedCAPR code", unit="neighbours", ge=1, le=10_000
    )
    k2: Whole = key(
        6,
        "Neighbours of the local query expansion; at most `clustering.k1`. 1 = no expansion.",
        source="FedCAPR code",
        unit="neighbours",
        ge=1,
        le=10_000,
    )
    eps: Number = key(
        0.5, "DBSCAN: largest Jaccard distance of neighbours.", source="FedCAPR code", unit="distance", gt=0.0, le=1.0
    )
    min_samples: Whole = key(
        4,
        "DBSCAN: images, itself included, that make an image the core of a cluster. Images of no cluster are left out.",
        source="FedCAPR code",
        unit="images",
        ge=1,
        le=10_000,
    )

    def problems(self) -> Iterator[Problem]:
        """Check that query expansion stays inside the k-reciprocal neighbourhood."""
        if self.k2 > self.k1:
            yield "k2", f"must be at most clustering.k1 = {self.k1}, got {self.k2}"


class LossConfig(Section):
    """Camera-aware proxy losses."""

    temperature: Number = key(
        0.07, "Temperature beta of both losses.", source="FedCAPR code", unit="cosine", gt=0.0, le=10.0
    )
    intra: Number = key(0.6, "Weight of the intra-camera loss.", source="FedCAPR code", ge=0.0, le=100.0)
    inter: Number = key(0.7, "Weight of the inter-camera loss.", source="FedCAPR code", ge=0.0, le=100.0)
    negatives: Whole = key(
        50,
        "Hardest other proxies in the denominator of the inter-camera loss.",
        source="FedCAPR code",
        unit="proxies",
        ge=1,
        le=100_000,
    )
    momentum: Number = key(
        0.2,
        "Share of the old proxy in the memory update m <- momentum m + (1 - momentum) f.",
        source="FedCAPR code",
        unit="share",
        ge=0.0,
        lt=1.0,
    )

    def problems(self) -> Iterator[Problem]:
        """Check that something is learned."""
        if self.intra == 0.0 and self.inter == 0.0:
            yield "inter", "and loss.intra are both 0: nothing would be learned"
