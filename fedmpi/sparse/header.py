"""The fixed 128 bytes that every message starts with; docs/wire-format.md is the specification."""

import struct
import zlib
from dataclasses import asdict, dataclass, fields
from enum import IntEnum, IntFlag
from typing import Self

from fedmpi.errors import WireError
from fedmpi.sparse.layout import Layout
from fedmpi.sparse.mask_codec import EMPTY_MODES, MaskMode, mask_bound

__all__ = ["HEADER_SIZE", "Flag", "Header", "Kind", "ValueCoding"]

MAGIC = b"FMS1"
VERSION = 2
HEADER_SIZE = 128
_FORMAT = struct.Struct("<4s4BHHIIIIIQQQQIIQQ8s16sI8s4x")
_CHECKSUM_AT = slice(12, 16)
_RESERVED = 4


class Kind(IntEnum):
    """What a message is."""

    UPDATE = 0  # client to server: the trained values
    MODEL = 1  # server to client: the personalized model
    RECOVERED = 2  # server to client: values at positions that the client's mask gets back
    REQUEST = 3  # client to server: scalars and flags, no values
    EVALUATION = 4  # server to client: the dense global model, for evaluation


class ValueCoding(IntEnum):
    """How the values travel."""

    RAW_F32 = 0
    LOSSLESS = 1  # bit-exact, by themselves
    LOSSLESS_DELTA = 2  # bit-exact, against what both ends hold at the same places
    BF16 = 3  # rounded to nearest even
    FP16 = 4


class Flag(IntFlag):
    """Bits of the flags field."""

    RECOVER = 1  # client asks for the values of its last good mask
    RESYNC = 2  # sender asks for, or sends, a mask that needs no memory of earlier ones
    LAST = 4  # no further message of this kind follows in this run
    TRAILING = 8  # the checksum of the values follows them; the head travels without it
    SHARED = 16  # the receiver takes the values from memory that both ends share


VALUE_BYTES = {ValueCoding.RAW_F32: 4, ValueCoding.BF16: 2, ValueCoding.FP16: 2}
"""Bytes a value; the parts of lossless values have lengths of their own, and their header says 0."""
_ALL_FLAGS = sum(Flag)
_DOWN = (Kind.MODEL, Kind.RECOVERED, Kind.EVALUATION)


@dataclass(frozen=True)
class Header:
    """The header's fields in wire order, without magic, version and its own checksum."""

    kind: int
    coding: int
    mask_mode: int
    flags: int
    segments: int
    round: int
    client: int
    base_epoch: int
    epoch: int
    size: int
    nnz: int
    mask_bytes: int
    value_bytes: int
    buffers: int
    scalars: int
    values_xor: int
    values_sum: int
    layout_hash: bytes
    mask_hash: bytes
    payload_crc: int
    base_hash: bytes

    def pack(self) -> bytes:
        """Return the 128 bytes.

        Raises
        ------
        WireError
            A field does not fit its width.
        """
        values = list(asdict(self).values())
        try:
            raw = bytearray(_FORMAT.pack(MAGIC, VERSION, *values[:5], 0, *values[5:]))
        except struct.error as error:
            raise WireError(f"a header field does not fit the wire format: {error}: {self}") from error
        raw[_CHECKSUM_AT] = zlib.crc32(raw).to_bytes(4, "little")
        return bytes(raw)

    @classmethod
    def unpack(cls, data: bytes | memoryview, layout: Layout, max_scalars: int) -> Self:
        """Check and return the header at the start of ``data``; every length is bounded by layout and ``max_scalars``.

        Raises
        ------
        WireError
            Not a message, another version, a broken header, or a field that does not fit the layout or the others.
        """
        raw = bytearray(data[:HEADER_SIZE])
        if len(raw) < HEADER_SIZE:
            raise WireError(f"a message starts with {HEADER_SIZE} header bytes, got {len(raw)}")
        magic, version, *values = _FORMAT.unpack(raw)
        if magic != MAGIC:
            raise WireError(f"not a fedmpi message: it starts with {magic!r}, expected {MAGIC!r}")
        if version != VERSION:
            raise WireError(f"wire format version {version}, this program reads {VERSION}: use one fedmpi on all ranks")
        announced = values.pop(5)
        raw[_CHECKSUM_AT] = bytes(4)
        if zlib.crc32(raw) != announced:
            raise WireError(f"header checksum is {zlib.crc32(raw):#010x}, the header says {announced:#010x}: corrupted")
        if any(raw[-_RESERVED:]):
            raise WireError(f"reserved header bytes are {bytes(raw[-_RESERVED:]).hex()}, expected zeros")
        header = cls(**dict(zip((field.name for field in fields(cls)), values, strict=True)))
        header.check(layout, max_scalars)
        return header

    @property
    def head_bytes(self) -> int:
        """Bytes of header, scalars, buffers and mask section together."""
        return HEADER_SIZE + 8 * self.scalars + 4 * self.buffers + self.mask_bytes

    def check(self, layout: Layout, max_scalars: int) -> None:
        """Refuse fields that no sender with this layout can mean."""
        _known(Kind, self.kind, "kind")
        _known(ValueCoding, self.coding, "value coding")
        _known(MaskMode, self.mask_mode, "mask mode")
        if self.flags & ~_ALL_FLAGS:
            raise WireError(f"flags {self.flags:#06x} has unknown bits, known are {_ALL_FLAGS:#06x}")
        if self.layout_hash != layout.hash:
            raise WireError(f"layout hash {self.layout_hash.hex()}, expected {layout.hash.hex()}: different models")
        _expect("size", self.size, layout.size)
        _at_most("nnz", self.nnz, layout.size)
        _expect("value bytes", self.value_bytes, VALUE_BYTES.get(ValueCoding(self.coding), 0) * self.nnz)
        if self.buffers:
            _expect("buffers", self.buffers, layout.buffer_size)
        _at_most("scalars", self.scalars, max_scalars)
        _at_most("mask bytes", self.mask_bytes, 0 if self.mask_mode in EMPTY_MODES else mask_bound(layout.size))
        self._check_mask_fields(layout.size)
        self._check_way()

    def _check_mask_fields(self, size: int) -> None:
        if self.mask_mode == MaskMode.ABSENT:
            _expect("nnz of a message without mask", self.nnz, 0)
        if self.mask_mode == MaskMode.NONE:
            _expect("nnz of a message that keeps all", self.nnz, size)
        if self.mask_mode == MaskMode.CACHED:
            _expect("epoch of an unchanged mask", self.epoch, self.base_epoch)
        if (self.kind == Kind.REQUEST) != (self.mask_mode == MaskMode.ABSENT):
            name = MaskMode(self.mask_mode).name
            raise WireError(f"mask mode {name} in a {Kind(self.kind).name} message: only a REQUEST has no values")

    def _check_way(self) -> None:
        """Refuse a way of sending values that the kind does not know, and a checksum that is said to be elsewhere."""
        way = self.flags & (Flag.TRAILING | Flag.SHARED)
        if not way:
            return
        fits = way == Flag.SHARED and self.kind == Kind.UPDATE
        if not fits and (self.kind not in _DOWN or way not in {Flag.TRAILING, Flag.SHARED}):
            raise WireError(f"flags {self.flags:#06x} do not fit a {Kind(self.kind).name} message")
        _expect("values xor64", self.values_xor, 0)
        _expect("values sum64", self.values_sum, 0)


def _known(enum: type[IntEnum], value: int, name: str) -> None:
    if value not in list(enum):
        raise WireError(f"{name} {value} is unknown; known are {', '.join(f'{m.value} {m.name}' for m in enum)}")


def _expect(name: str, got: int, expected: int) -> None:
    if got != expected:
        raise WireError(f"{name}: got {got}, expected {expected}")


def _at_most(name: str, got: int, bound: int) -> None:
    if got > bound:
        raise WireError(f"{name}: got {got}, at most {bound} fit")
