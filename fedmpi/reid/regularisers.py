"""What is added to the local loss to keep a client near the model that it received (METHOD sections 2 and 6)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from fedmpi.reid.features import Viewing
from fedmpi.reid.losses import KLFeatures, kl_divergence


@dataclass(frozen=True)
class Batch:
    """What a regulariser may look at in one training step.

    Attributes
    ----------
    model, teacher
        The network in training, and a frozen copy of what was received.
    pixels
        ``float32[b, 3, H, W]`` on the device.
    z
        Un-normalised embeddings of ``pixels`` by ``model``, ``float32[b, D]``, with gradients.
    viewing
        Precision of the forward pass.
    """

    model: nn.Module
    teacher: nn.Module
    pixels: torch.Tensor
    z: torch.Tensor
    viewing: Viewing

    def reference(self) -> torch.Tensor:
        """Return the teacher's embeddings of the same images, ``float32[b, D]``, without gradients."""
        with torch.no_grad(), self.viewing.autocast():
            return self.teacher(self.pixels).float()  # type: ignore[no-any-return]


class Regulariser(Protocol):
    """A term of the local loss: ``weight`` times ``penalty``, from round ``start_round`` on."""

    @property
    def weight(self) -> float:
        """Factor of the penalty."""

    @property
    def start_round(self) -> int:
        """First round in which it counts."""

    def penalty(self, batch: Batch) -> torch.Tensor:
        """Return the unweighted penalty of a batch, a scalar with gradients."""


@dataclass(frozen=True)
class KL:
    """KLL of FedKLPR: KL(P_received || P_local) of the embeddings' softmax, mean over the batch."""

    weight: float
    start_round: int
    temperature: float = 1.0
    features: KLFeatures = "embedding"

    def penalty(self, batch: Batch) -> torch.Tensor:
        """Return the mean KL divergence."""
        return kl_divergence(batch.reference(), batch.z, temperature=self.temperature, features=self.features)


@dataclass(frozen=True)
class Cosine:
    """FedCAPR's penalty: 1 - cos between local and received embedding, mean over the batch."""

    weight: float
    start_round: int

    def penalty(self, batch: Batch) -> torch.Tensor:
        """Return the mean of 1 - cos."""
        return (1 - functional.cosine_similarity(batch.z, batch.reference(), dim=1)).mean()


@dataclass(frozen=True)
class Proximal:
    """FedProx: half the squared distance of all trained parameters to the received ones."""

    weight: float
    start_round: int = 0

    def penalty(self, batch: Batch) -> torch.Tensor:
        """Return 1/2 |theta - theta_G|^2; its gradient is theta - theta_G."""
        pairs = zip(batch.model.parameters(), batch.teacher.parameters(), strict=True)
        squares = [(mine - theirs.detach()).square().sum() for mine, theirs in pairs if mine.requires_grad]
        return 0.5 * torch.stack(squares).sum()
