"""The layout: named tensors of a module on one side, one flat vector on the other.

Everything that travels, is pruned or is merged is a flat float32 vector; the layout says which entry belongs to which
tensor. Two ranks exchange messages only when their layouts have the same hash.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from math import prod
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmpi.errors import WireError

__all__ = ["Layout", "LayoutTensor"]

Shape = tuple[int, ...]


class LayoutTensor(NamedTuple):
    """One parameter tensor and its place in the flat vector."""

    name: str
    slice: slice
    shape: Shape
    prunable: bool


@dataclass(frozen=True)
class Layout:
    """Order, shapes and places of all parameters and floating-point buffers of a module.

    Attributes
    ----------
    names, shapes
        Parameters in ``named_parameters`` order, frozen ones included; a shared parameter counts once.
    buffer_names, buffer_shapes
        Persistent floating-point buffers (running mean and variance of batch normalisation) in ``named_buffers`` order.
        Integer buffers (``num_batches_tracked``) are not exchanged: they stay local.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    buffer_names: tuple[str, ...] = ()
    buffer_shapes: tuple[Shape, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """Return the layout of ``module``.

        Raises
        ------
        WireError
            A parameter or floating-point buffer is not float32.
        """
        parameters = list(module.named_parameters())
        buffers = _float_buffers(module)
        for name, tensor in (*parameters, *buffers):
            if tensor.dtype != torch.float32:
                raise WireError(f"tensor {name!r} is {tensor.dtype}; only float32 modules are exchanged: call .float()")
        return cls(
            names=tuple(name for name, _ in parameters),
            shapes=tuple(tuple(tensor.shape) for _, tensor in parameters),
            buffer_names=tuple(name for name, _ in buffers),
            buffer_shapes=tuple(tuple(tensor.shape) for _, tensor in buffers),
        )

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First entry of each tensor, and the size N at the end (one more than there are tensors)."""
        return tuple(accumulate((prod(shape) for shape in self.shapes), initial=0))

    @cached_property
    def buffer_offsets(self) -> tuple[int, ...]:
        """First entry of each buffer, and the size B at the end."""
        return tuple(accumulate((prod(shape) for shape in self.buffer_shapes), initial=0))

    @property
    def size(self) -> int:
        """Number of parameters N."""
        return self.offsets[-1]

    @property
    def buffer_size(self) -> int:
        """Number of buffer entries B."""
        return self.buffer_offsets[-1]

    @cached_property
    def prunable(self) -> tuple[bool, ...]:
        """Which tensors may be pruned: weights of convolutions and linear layers, that is two dimensions or more."""
        return tuple(len(shape) >= 2 for shape in self.shapes)

    @cached_property
    def tensors(self) -> tuple[LayoutTensor, ...]:
        """The parameter tensors, in order."""
        slices = (slice(lo, hi) for lo, hi in zip(self.offsets[:-1], self.offsets[1:], strict=True))
        return tuple(
            LayoutTensor(*fields) for fields in zip(self.names, slices, self.shapes, self.prunable, strict=True)
        )

    @cached_property
    def hash(self) -> bytes:
        """Eight bytes of blake2b over order, names, shapes and dtypes of parameters and buffers."""
        digest = blake2b(digest_size=8)
        for group, names, shapes in (
            (b"parameters", self.names, self.shapes),
            (b"buffers", self.buffer_names, self.buffer_shapes),
        ):
            digest.update(group + struct.pack("<Q", len(names)))
            for name, shape in zip(names, shapes, strict=True):
                text = name.encode()
                digest.update(struct.pack(f"<Q{len(text)}s4sQ", len(text), text, b"<f4\0", len(shape)))
                digest.update(struct.pack(f"<{len(shape)}Q", *shape))
        return digest.digest()

    def flatten(self, module: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Copy a module's state out, from any device.

        Returns
        -------
        theta : float32[N]
        buffers : float32[B]

        Raises
        ------
        WireError
            The module has another layout.
        """
        theta, buffers = self.gather(module)
        return theta.cpu().numpy(), buffers.cpu().numpy()

    def gather(self, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Return copies of a module's state as `flatten` does, on its device; ``WireError`` as there."""
        parameters, buffers = self._checked(module)
        return _concatenate(parameters), _concatenate(buffers)

    def load(self, module: nn.Module, theta: NDArray[np.float32] | torch.Tensor, buffers: NDArray[np.float32]) -> None:
        """Copy ``theta`` (float32[N], on any device) and ``buffers`` (float32[B]) into the module, on its device.

        Raises
        ------
        WireError
            The module has another layout, or a vector another length or dtype.
        """
        parameters, floats = self._checked(module)
        _scatter(theta, "theta", self.offsets, parameters)
        _scatter(buffers, "buffers", self.buffer_offsets, floats)

    def state_dict(self, theta: NDArray[np.float32], buffers: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        """Return named CPU tensors (own memory, float32), for saving and ``load_state_dict(..., strict=False)``.

        Integer buffers are not part of the flat vectors, hence not strict.
        """
        return {
            **_split(theta, "theta", self.offsets, self.names, self.shapes),
            **_split(buffers, "buffers", self.buffer_offsets, self.buffer_names, self.buffer_shapes),
        }

    def _checked(self, module: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        found = Layout.of(module)
        if found != self:
            raise WireError(f"the module does not fit the layout: {_first_difference(found, self)}")
        return list(module.parameters()), [tensor for _, tensor in _float_buffers(module)]


def _float_buffers(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    persistent = module.state_dict(keep_vars=True).keys()
    return [(name, b) for name, b in module.named_buffers() if b.is_floating_point() and name in persistent]


def _first_difference(found: Layout, expected: Layout) -> str:
    for kind, got, want in (
        ("parameter", zip(found.names, found.shapes, strict=True), zip(expected.names, expected.shapes, strict=True)),
        (
            "buffer",
            zip(found.buffer_names, found.buffer_shapes, strict=True),
            zip(expected.buffer_names, expected.buffer_shapes, strict=True),
        ),
    ):
        got_list, want_list = list(got), list(want)
        for index, (g, w) in enumerate(zip(got_list, want_list, strict=False)):
            if g != w:
                return f"{kind} {index} is {g[0]} {list(g[1])}, expected {w[0]} {list(w[1])}"
        if len(got_list) != len(want_list):
            return f"{len(got_list)} {kind}s, expected {len(want_list)}"
    return "no difference"


@torch.no_grad()
def _concatenate(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    if not tensors:
        return torch.empty(0)
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@torch.no_grad()
def _scatter(
    vector: NDArray[np.float32] | torch.Tensor, name: str, offsets: Sequence[int], tensors: Sequence[torch.Tensor]
) -> None:
    flat = _as_tensor(vector, name, offsets[-1])
    if tensors and flat.device != tensors[0].device:
        flat = flat.to(tensors[0].device)  # one transfer instead of one per tensor
    for lo, hi, tensor in zip(offsets[:-1], offsets[1:], tensors, strict=True):
        tensor.copy_(flat[lo:hi].view(tensor.shape))


def _split(
    vector: NDArray[np.float32], name: str, offsets: Sequence[int], names: Iterable[str], shapes: Iterable[Shape]
) -> dict[str, torch.Tensor]:
    flat = _as_tensor(vector, name, offsets[-1])
    places = zip(names, shapes, offsets[:-1], offsets[1:], strict=True)
    return {key: flat[lo:hi].reshape(shape).clone() for key, shape, lo, hi in places}


def _as_tensor(vector: NDArray[np.float32] | torch.Tensor, name: str, size: int) -> torch.Tensor:
    if isinstance(vector, torch.Tensor):
        if vector.dtype != torch.float32 or vector.shape != (size,):
            raise WireError(f"{name} is {vector.dtype}{list(vector.shape)}, the layout needs float32[{size}]")
        return vector
    if vector.dtype != np.float32 or vector.shape != (size,):
        raise WireError(f"{name} is {vector.dtype}{list(vector.shape)}, the layout needs float32[{size}]")
    return torch.from_numpy(vector if vector.flags.writeable and vector.flags.c_contiguous else vector.copy())
