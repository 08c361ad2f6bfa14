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
    TABLE = 3  # which entries are kept, by the coder that needs the fewest bytes
    SUBSET = 4  # in the same way, which survivors of the previous mask died
    XOR = 5  # in the same way, which entries differ from the previous mask
    ABSENT = 6  # the message has no values, so no mask either; empty section


class Partition(IntEnum):
    """The first byte of a coded section: what has a record of its own."""

    TENSORS = 0  # each tensor of the layout: densities differ, so do the best coders
    WHOLE = 1  # the vector as a whole: a change so small that a record per tensor would outweigh it


# Records have about 7 bytes beside their streams, so below this size per tensor they may cost more than they gain.
_SMALL = 1024

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
    plan = _plan(MaskMode.TABLE, mask, None, layout) if previous is None else _best_plan(mask, previous, layout)
    section = plan.encode(mask, previous, layout)
    if len(section) >= mask_bound(mask.size):
        return MaskMode.BITMAP, mask.bitmap.tobytes()
    return plan.mode, section


def decode_mask(mode: int, section: bytes | memoryview, previous: Mask | None, layout: Layout, nnz: int) -> Mask:
    """Return the mask that a section says, which must keep exactly ``nnz`` entries.

    Memory beside mask and section: at most 34 bytes per entry of the largest tensor, or of the vector where a section
    of the WHOLE partition announces so many positions.

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


class _Plan(NamedTuple):
    mode: MaskMode
    partition: Partition
    records: list[BitPlan]

    @property
    def size(self) -> int:
        return 1 + sum(record.size for record in self.records)

    def encode(self, mask: Mask, previous: Mask | None, layout: Layout) -> bytes:
        vectors = _vectors(self.mode, mask, previous, _places(self.partition, layout))
        records = (encode_bits(bits, record) for bits, record in zip(vectors, self.records, strict=True))
        return bytes([self.partition]) + b"".join(records)


def _best_plan(mask: Mask, previous: Mask, layout: Layout) -> _Plan:
    mode = MaskMode.XOR if mask.difference(previous).count() else MaskMode.SUBSET
    delta = _plan(mode, mask, previous, layout)
    counts = ((mask.count(t.slice.start, t.slice.stop), t.slice.stop - t.slice.start) for t in layout.tensors)
    if delta.size <= sum(entropy_bytes(count, size) for count, size in counts):
        return delta
    return min(delta, _plan(MaskMode.TABLE, mask, None, layout), key=lambda plan: plan.size)


def _plan(mode: MaskMode, mask: Mask, previous: Mask | None, layout: Layout) -> _Plan:
    plan = _partitioned(Partition.TENSORS, mode, mask, previous, layout)
    if plan.size > _SMALL * len(layout.tensors):
        return plan
    return min(plan, _partitioned(Partition.WHOLE, mode, mask, previous, layout), key=lambda plan: plan.size)


def _partitioned(partition: Partition, mode: MaskMode, mask: Mask, previous: Mask | None, layout: Layout) -> _Plan:
    vectors = _vectors(mode, mask, previous, _places(partition, layout))
    return _Plan(mode, partition, [plan_bits(bits) for bits in vectors])


def _places(partition: Partition, layout: Layout) -> list[slice]:
    return [slice(0, layout.size)] if partition == Partition.WHOLE else [tensor.slice for tensor in layout.tensors]


def _vectors(mode: MaskMode, mask: Mask, previous: Mask | None, places: list[slice]) -> Iterator[NDArray[np.bool_]]:
    """Yield for each place the bits that ``mode`` codes."""
    for place in places:
        lo, hi = place.start, place.stop
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
    first = reader.byte()
    if first not in list(Partition):
        raise WireError(f"mask section has unknown partition {first}; known are {', '.join(Partition.__members__)}")
    places = _places(Partition(first), layout)
    mask = _pack(places, (_decode_bits(mode, reader, previous, place) for place in places), layout.size)
    reader.finish()
    return mask


def _decode_bits(mode: MaskMode, reader: Reader, previous: Mask | None, place: slice) -> NDArray[np.bool_]:
    size = place.stop - place.start
    if mode == MaskMode.TABLE or previous is None:
        return decode_bits(reader, size)
    kept = previous.to_bool(place.start, place.stop)
    if mode == MaskMode.XOR:
        return kept ^ decode_bits(reader, size)
    survivors = np.flatnonzero(kept)
    kept[survivors[decode_bits(reader, survivors.size)]] = False
    return kept


def _pack(places: list[slice], vectors: Iterable[NDArray[np.bool_]], size: int) -> Mask:
    """Put the places' bits together, one place unpacked at a time."""
    bitmap = np.zeros(mask_bound(size), np.uint8)
    for place, bits in zip(places, vectors, strict=True):
        first, shift = divmod(place.start, 8)
        packed = np.packbits(np.concatenate([np.zeros(shift, np.bool_), bits]), bitorder="little")
        bitmap[first : first + packed.size] |= packed
    return Mask.from_bytes(bitmap, size)


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
