"""The mask section of a message: nothing while the mask is known, else the shortest of what says it.

Sender and receiver both remember the mask of the last exchange (``previous``). A monotone change, which is what pruning
makes, costs the entropy of *which survivors died*.
"""

from enum import IntEnum
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

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
    plan = _plan(MaskMode.TABLE, mask, _tensors(layout)) if previous is None else _best_plan(mask, previous, layout)
    section = plan.encode()
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
    coded: Mask
    places: list[slice]
    records: list[BitPlan]

    @property
    def size(self) -> int:
        return 1 + sum(record.size for record in self.records)

    def encode(self) -> bytes:
        vectors = (self.coded.to_bool(place.start, place.stop) for place in self.places)
        records = (encode_bits(bits, record) for bits, record in zip(vectors, self.records, strict=True))
        return bytes([self.partition]) + b"".join(records)


def _best_plan(mask: Mask, previous: Mask, layout: Layout) -> _Plan:
    if mask.difference(previous).count():
        delta = _plan(MaskMode.XOR, mask.symmetric_difference(previous), _tensors(layout))
    else:
        died = previous.difference(mask).within(previous)
        delta = _plan(MaskMode.SUBSET, died, _survivors(previous, layout))
    counts = ((mask.count(place.start, place.stop), place.stop - place.start) for place in _tensors(layout))
    if delta.size <= sum(entropy_bytes(count, size) for count, size in counts):
        return delta
    return min(delta, _plan(MaskMode.TABLE, mask, _tensors(layout)), key=lambda plan: plan.size)


def _plan(mode: MaskMode, coded: Mask, places: list[slice]) -> _Plan:
    plan = _partitioned(mode, Partition.TENSORS, coded, places)
    if plan.size > _SMALL * len(places):
        return plan
    whole = _partitioned(mode, Partition.WHOLE, coded, [slice(0, coded.size)])
    return min(plan, whole, key=lambda plan: plan.size)


def _partitioned(mode: MaskMode, partition: Partition, coded: Mask, places: list[slice]) -> _Plan:
    records = [plan_bits(coded.to_bool(place.start, place.stop)) for place in places]
    return _Plan(mode, partition, coded, places, records)


def _tensors(layout: Layout) -> list[slice]:
    return [tensor.slice for tensor in layout.tensors]


def _survivors(previous: Mask, layout: Layout) -> list[slice]:
    """Return each tensor's place among the entries that ``previous`` keeps."""
    counts = (previous.count(tensor.slice.start, tensor.slice.stop) for tensor in layout.tensors)
    return [slice(lo, hi) for lo, hi in pairwise(accumulate(counts, initial=0))]


def _decode(mode: MaskMode, section: bytes | memoryview, previous: Mask | None, layout: Layout) -> Mask:
    if mode == MaskMode.NONE:
        return Mask.full(layout.size)
    if mode == MaskMode.BITMAP:
        return Mask.from_bytes(np.frombuffer(section, np.uint8), layout.size)
    if mode == MaskMode.TABLE or previous is None:
        return _decode_records(section, _tensors(layout), layout.size)
    if mode == MaskMode.CACHED:
        return previous
    if mode == MaskMode.XOR:
        return previous.symmetric_difference(_decode_records(section, _tensors(layout), layout.size))
    died = _decode_records(section, _survivors(previous, layout), previous.count())
    return previous.difference(died.spread(previous))


def _decode_records(section: bytes | memoryview, places: list[slice], size: int) -> Mask:
    """Read a coded section, one place unpacked at a time."""
    reader = Reader(section)
    partition = reader.byte()
    if partition not in list(Partition):
        raise WireError(f"mask section has unknown partition {partition}; known are {', '.join(Partition.__members__)}")
    bitmap = np.zeros((size + 7) // 8, np.uint8)
    for place in places if partition == Partition.TENSORS else [slice(0, size)]:
        first, shift = divmod(place.start, 8)
        bits = decode_bits(reader, place.stop - place.start)
        packed = np.packbits(np.concatenate([np.zeros(shift, np.bool_), bits]), bitorder="little")
        bitmap[first : first + packed.size] |= packed
    reader.finish()
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
