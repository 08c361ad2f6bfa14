"""The embedding network: a torchvision ResNet with last stride 1, global average pooling and a BN-neck.

BN-neck and last stride after Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-Identification"
(CVPRW 2019), as in FedReID and FedCAPR.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torchvision.models import ResNet, resnet18, resnet34, resnet50

from fedmpi.reid.weights import load_weights

ARCHITECTURES: Final[dict[str, Callable[..., ResNet]]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}


class ReIDNet(nn.Module):
    """Image to embedding; no classifier and no normalisation at the end.

    Attributes
    ----------
    base
        torchvision's ResNet with ``fc`` replaced by the identity.
    neck
        BatchNorm1d(dim); its bias stays 0 (it remains a parameter, without gradient).
    dim
        Embedding size D: 2048 for ResNet-50, 512 for ResNet-34 and ResNet-18.
    weights_sha256
        Hexadecimal sha256 of the file that the weights were loaded from, None when they were drawn.
    """

    def __init__(self, base: ResNet, dim: int) -> None:
        super().__init__()
        self.base = base
        self.neck = nn.BatchNorm1d(dim)
        self.neck.bias.requires_grad_(False)  # noqa: FBT003 (torch's signature)
        self.dim = dim
        self.weights_sha256: str | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images float32[B, 3, H, W] to un-normalised BN-neck embeddings float32[B, D], also under autocast."""
        z: torch.Tensor = self.neck(self.base(images).to(self.neck.weight.dtype))
        return z


def build_backbone(
    arch: str = "resnet50", *, weights: Path | None = None, last_stride: int = 1, stem_relu: bool = True, seed: int
) -> ReIDNet:
    """Make the network on the CPU, float32, in training mode.

    Parameters
    ----------
    arch
        ``resnet18``, ``resnet34`` or ``resnet50``.
    weights
        Local file for ``base``, see `fedmpi.reid.weights`, and for ``neck`` where it has one; None keeps torchvision's
        initialisation.
    last_stride
        Stride of the last stage: 1 keeps a 16 x 8 map of a 256 x 128 image, 2 is ImageNet's.
    stem_relu
        Keep the ReLU after the first convolution, as torchvision does; FedCAPR has none.
    seed
        Non-negative integer below 2^63 that all random initial values come from; torch's CPU generator looks at its
        lowest 32 bits only. Global generators are left alone.

    Raises
    ------
    DataError
        When the weight file is missing or does not fit.
    ValueError
        When ``arch`` or ``last_stride`` is unknown.
    """
    if arch not in ARCHITECTURES:
        message = f"arch = {arch!r}: expected one of {', '.join(ARCHITECTURES)}"
        raise ValueError(message)
    if last_stride not in (1, 2):
        message = f"last_stride = {last_stride}: expected 1 or 2"
        raise ValueError(message)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs, which fork_rng skips
        base = ARCHITECTURES[arch](weights=None)
        dim = base.fc.in_features
        base.fc = nn.Identity()
        net = ReIDNet(base, dim)
    _set_last_stride(base, last_stride)
    if not stem_relu:
        base.relu = nn.Identity()  # the blocks have ReLUs of their own
    if weights is not None:
        net.weights_sha256 = load_weights(base, weights, net.neck)
    return net


def _set_last_stride(base: ResNet, stride: int) -> None:
    """Set the stride where torchvision has it: in conv2 of a bottleneck, in conv1 of a basic block, in the shortcut."""
    block = base.layer4[0]
    strided = block.conv2 if hasattr(block, "conv3") else block.conv1
    strided.stride = block.downsample[0].stride = (stride, stride)
