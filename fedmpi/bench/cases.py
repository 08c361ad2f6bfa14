"""What is measured on: the layout of a network, masks and values that any rank can draw again."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedmpi.pruning.magnitude import prune
from fedmpi.sparse import Layout, Mask

Values = NDArray[np.float32]
Words = NDArray[np.uint64]
_SHARE = 1 << 16  # randomness of a mask entry: densities are met to 1/65536


@dataclass(frozen=True)
class Model:
    """A layout, and initial weights for it: float32[N] and buffers, float32[B]."""

    layout: Layout
    theta: Values
    buffers: Values

    @classmethod
    def network(cls, arch: str) -> "Model":
        """Return a network of the package (``resnet18``, ``resnet34``, ``resnet50``) as it is initialised."""
        from fedmpi.reid.backbone import build_backbone  # noqa: PLC0415 - seconds, and not every bench needs it

        module = build_backbone(arch, seed=0)
        layout = Layout.of(module)
        return cls(layout, *layout.flatten(module))

    @classmethod
    def vector(cls, size: int) -> "Model":
        """Return one weight tensor of ``size`` normal values, without buffers."""
        return cls(Layout(("weight",), ((size, 1),)), draw_values(size, 0), np.empty(0, np.float32))

    @cached_property
    def prunable(self) -> list[slice]:
        """Slices of the tensors that may be pruned."""
        return [tensor.slice for tensor in self.layout.tensors if tensor.prunable]

    def trained(self) -> Values:
        """Return ``theta`` plus normal noise of a hundredth of each tensor's spread, float32[N]."""
        noise = draw_values(self.layout.size, 1)
        for tensor in self.layout.tensors:
            noise[tensor.slice] *= np.float32(0.01 * self.theta[tensor.slice].std())
        return self.theta + noise

    def smallest_pruned(self, density: float) -> Mask:
        """Return the mask that global magnitude pruning of the initial weights to ``density`` leaves."""
        kept = np.ones(self.layout.size, np.bool_)
        if density < 1:
            kept = prune(self.theta, kept, self.prunable, step=1.0, target=1 - density, scope="global")
        return Mask.from_bool(kept)


def draw_values(size: int, seed: int) -> Values:
    """Return float32[size] from a normal distribution."""
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def draw_mask(size: int, density: float, seed: int) -> Mask:
    """Return a mask whose entries are kept independently, each with probability ``density``."""
    if density >= 1:
        return Mask.full(size)
    drawn = np.random.default_rng(seed).integers(0, _SHARE, size, np.uint16)
    return Mask.from_bool(drawn < round(density * _SHARE))


def draw_trained(size: int, client: int) -> Values:
    """Return what a client makes of ``draw_values(size, 0)``: normal noise of a hundredth of its spread is added."""
    return draw_values(size, 0) + np.float32(0.01) * draw_values(size, client + 1)
