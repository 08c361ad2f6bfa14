"""The mask section of a message: nothing while the mask is known, else the shortest of what says it.

Sender and receiver both remember the mask of the last exchange (``previous``). A monotone change, which is what pruning
makes, costs the entropy of *which survivors died*.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import WireError
from fedmpi.sparse.bitcode import BitPlan, Reader, decode_bits, encode_bits, entropy_bytes, plan_bits
from fedmpi.sparse.layout import Layout
from fedmpi.sparse.mask import Mask

__all__ = ["MaskMode", "decode_mask", "encode_mask", "mask_bound"]


class MaskMode(IntEnum):
    """How the mask section says which entries are kept."""

    NONE = 0  # all entries are kept; empty section
    CACHED = 1  # the previous mask; empty section
    BITMAP = 2  # one bit per entry
    TABLE = 3  # per tensor, the coder that needs the fewest bytes
    SUBSET = 4  # per tensor, which survivors of the previous mask died
    XOR = 5  # per tensor, which entries differ from the previous mask
    ABSENT = 6  # the message has no values, so no mask either; empty section


EMPTY_MODES = (MaskMode.NONE, MaskMode.CACHED, MaskMode.ABSENT)
DELTA_MODES = (MaskMode.SUBSET, MaskMode.XOR)


def mask_bound(size: int) -> int:
    """Return the most bytes that a mask section of ``size`` entries may have: those of the bitmap."""
    return (size + 7) // 8


def encode_mask(mask: Mask, previous: Mask | None, layout: Layout) -> tuple[MaskMode, bytes]:
    """Return the shortest section for ``mask``, given what the receiver remembers (None: nothing).

    Sizes are known from counts, so only the chosen form is encoded. A form is not even planned when the entropy of its
    bits, taken as independent within a tensor, is above the exact size of one that is.

    Raises
    ------
    WireError
        ``mask`` or ``previous`` has another size than the layout.
    """
    for given in (mask, previous):
        _check_size(given, layout)
    if mask.is_full:
        return MaskMode.NONE, b""
    if previous is not None and mask == previous:
        return MaskMode.CACHED, b""
    plans = _table_plan(mask, layout) if previous is None else _best_plan(mask, previous, layout)
    section = b"".join(
        encode_bits(bits, plan)
        for bits, plan in zip(_vectors(plans.mode, mask, previous, layout), plans.plans, strict=True)
    )
    if len(section) >= mask_bound(mask.size):
        return MaskMode.BITMAP, mask.bitmap.tobytes()
    return plans.mode, section


def decode_mask(mode: int, section: bytes | memoryview, previous: Mask | None, layout: Layout, nnz: int) -> Mask:
    """Return the mask that a section says, which must keep exactly ``nnz`` entries.

    Memory: the section and 9 bytes per entry of the largest tensor beside the mask itself.

    Raises
    ------
    WireError
        Unknown mode, a form that needs a previous mask where there is none, or a section that does not decode.
    """
    if mode not in list(MaskMode) or mode == MaskMode.ABSENT:
        raise WireError(f"mask mode {mode} is unknown here; known are {', '.join(m.name for m in MaskMode)}")
    mode = MaskMode(mode)
    _check_section(mode, len(section), previous, layout)
    mask = _decode(mode, section, previous, layout)
    if mask.count() != nnz:
        raise WireError(f"the mask ({mode.name}) keeps {mask.count()} entries, the header says {nnz}")
    return mask


class _Plans(NamedTuple):
    mode: MaskMode
    plans: list[BitPlan]

    @property
    def size(self) -> int:
        return sum(plan.size for plan in self.plans)


def _best_plan(mask: Mask, previous: Mask, layout: Layout) -> _Plans:
    mode = MaskMode.XOR if mask.difference(previous).count() else MaskMode.SUBSET
    delta = _Plans(mode, [plan_bits(bits) for bits in _vectors(mode, mask, previous, layout)])
    counts = ((mask.count(t.slice.start, t.slice.stop), t.slice.stop - t.slice.start) for t in layout.tensors)
    if delta.size <= sum(entropy_bytes(count, size) for count, size in counts):
        return delta
    return min(delta, _table_plan(mask, layout), key=lambda plans: plans.size)


def _table_plan(mask: Mask, layout: Layout) -> _Plans:
    return _Plans(MaskMode.TABLE, [plan_bits(bits) for bits in _vectors(MaskMode.TABLE, mask, None, layout)])


def _vectors(mode: MaskMode, mask: Mask, previous: Mask | None, layout: Layout) -> Iterator[NDArray[np.bool_]]:
    """Yield for each tensor the bits that ``mode`` codes."""
    for tensor in layout.tensors:
        lo, hi = tensor.slice.start, tensor.slice.stop
        kept = mask.to_bool(lo, hi)
        if mode == MaskMode.TABLE or previous is None:
            yield kept
        elif mode == MaskMode.SUBSET:
            yield ~kept[previous.to_bool(lo, hi)]
        else:
            yield kept ^ previous.to_bool(lo, hi)


def _decode(mode: MaskMode, section: bytes | memoryview, previous: Mask | None, layout: Layout) -> Mask:
    if mode == MaskMode.NONE:
        return Mask.full(layout.size)
    if mode == MaskMode.BITMAP:
        return Mask.from_bytes(np.frombuffer(section, np.uint8), layout.size)
    if mode == MaskMode.CACHED and previous is not None:
        return previous
    reader = Reader(section)
    mask = _pack((_decode_tensor(mode, reader, previous, t.slice) for t in layout.tensors), layout)
    reader.finish()
    return mask


def _decode_tensor(mode: MaskMode, reader: Reader, previous: Mask | None, place: slice) -> NDArray[np.bool_]:
    size = place.stop - place.start
    if mode == MaskMode.TABLE or previous is None:
        return decode_bits(reader, size)
    kept = previous.to_bool(place.start, place.stop)
    if mode == MaskMode.XOR:
        return kept ^ decode_bits(reader, size)
    survivors = np.flatnonzero(kept)
    kept[survivors[decode_bits(reader, survivors.size)]] = False
    return kept


def _pack(vectors: Iterable[NDArray[np.bool_]], layout: Layout) -> Mask:
    """Put the tensors' bits together, one tensor unpacked at a time."""
    bitmap = np.zeros(mask_bound(layout.size), np.uint8)
    for tensor, bits in zip(layout.tensors, vectors, strict=True):
        first, shift = divmod(tensor.slice.start, 8)
        shifted = np.concatenate([np.zeros(shift, np.bool_), bits])
        packed = np.packbits(shifted, bitorder="little")
        bitmap[first : first + packed.size] |= packed
    return Mask.from_bytes(bitmap, layout.size)


def _check_section(mode: MaskMode, length: int, previous: Mask | None, layout: Layout) -> None:
    _check_size(previous, layout)
    if mode in EMPTY_MODES and length:
        raise WireError(f"mask mode {mode.name} has an empty section, got {length} bytes")
    if length > mask_bound(layout.size):
        raise WireError(f"the mask section has {length} bytes, at most {mask_bound(layout.size)} are allowed")
    if previous is None and mode in (MaskMode.CACHED, *DELTA_MODES):
        raise WireError(f"mask mode {mode.name} needs a previous mask and none is remembered: ask for a resync")


def _check_size(mask: Mask | None, layout: Layout) -> None:
    if mask is not None and mask.size != layout.size:
        raise WireError(f"the mask has {mask.size} entries, the layout {layout.size}")
