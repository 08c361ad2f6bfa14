"""Pruned weights stored by what is left of them: a bitmap of the entries that are kept, and their values.

A tensor ``NAME`` of which enough is zero becomes two: ``NAME.bitmap``, uint8[ceil(n / 8)], bit ``i % 8`` of byte
``i // 8`` for entry ``i`` in C order, and ``NAME.values``, float32[kept]; its shape goes to ``NAME.shape``, int64. All
other tensors stay as they are. All values are the same afterwards; a minus zero, as pruning leaves many, is a zero.
"""

from collections.abc import Mapping

import numpy as np
import torch

Tensors = Mapping[str, torch.Tensor]
PARTS = (".bitmap", ".values", ".shape")


def pack_zeros(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return ``tensors`` (float32) with every one packed that becomes smaller by it."""
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        packed |= _packed(name, tensor)
    return packed


def unpack_zeros(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the tensors that were given to `pack_zeros`, ready for ``load_state_dict``."""
    names = dict.fromkeys(_whole_name(name) for name in tensors)
    return {name: tensors[name] if name in tensors else _unpacked(name, tensors) for name in names}


def _packed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    flat = tensor.detach().contiguous().reshape(-1).numpy()
    kept = flat != 0
    if 4 * int(kept.sum()) + (flat.size + 7) // 8 + 8 * tensor.ndim >= 4 * flat.size:
        return {name: tensor}
    bitmap = torch.from_numpy(np.packbits(kept, bitorder="little"))
    shape = torch.tensor(tensor.shape, dtype=torch.int64)
    parts = (bitmap, torch.from_numpy(flat[kept]), shape)
    return {name + part: value for part, value in zip(PARTS, parts, strict=True)}


def _unpacked(name: str, tensors: Tensors) -> torch.Tensor:
    bitmap, values, shape = (tensors[name + part] for part in PARTS)
    flat = torch.zeros(int(shape.prod()))
    kept = np.unpackbits(bitmap.numpy(), count=flat.numel(), bitorder="little").view(bool)
    flat[torch.from_numpy(kept)] = values
    return flat.reshape(tuple(shape.tolist()))


def _whole_name(name: str) -> str:
    return next((name.removesuffix(part) for part in PARTS if name.endswith(part)), name)
