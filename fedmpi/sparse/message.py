"""Messages: a head of bounded length, then the values in segments.

A head is header (128 bytes), scalars (float64), buffers (float32) and mask section, in this order and without padding.
The nnz values travel apart: the receiver knows their number and coding from the head.
"""

import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import WireError
from fedmpi.sparse.checksum import Checksum
from fedmpi.sparse.header import HEADER_SIZE, VALUE_BYTES, Flag, Header, Kind, ValueCoding
from fedmpi.sparse.layout import Layout
from fedmpi.sparse.mask import Mask
from fedmpi.sparse.mask_codec import DELTA_MODES, MaskMode, decode_mask, encode_mask

__all__ = [
    "HEADER_SIZE", "Flag", "Head", "Kind", "MaskOutOfStepError", "SectionSizes", "ValueCoding", "decode_head",
    "encode_head", "head_bound", "peek",
]  # fmt: skip


Data = bytes | memoryview | NDArray[np.uint8]


class MaskOutOfStepError(WireError):
    """Sender and receiver do not remember the same mask; a message with the whole mask (RESYNC) repairs it."""


class SectionSizes(NamedTuple):
    """Bytes of a head by section."""

    header: int
    mask: int
    buffers: int
    scalars: int

    @property
    def total(self) -> int:
        """Bytes of the head."""
        return sum(self)


def _no_buffers() -> NDArray[np.float32]:
    return np.empty(0, np.float32)


def _no_scalars() -> NDArray[np.float64]:
    return np.empty(0, np.float64)


@dataclass(frozen=True)
class Head:
    """All of a message but its values.

    Attributes
    ----------
    kind, round
        What the message is, and the round that it belongs to.
    client
        The client that sends, or that is addressed by the server.
    base_epoch, epoch
        Number of the mask that sender and receiver remember, and of the mask in this message; equal while the mask is
        unchanged.
    mask
        Entries whose values travel; None in a REQUEST, which has no values.
    buffers : float32[B] or float32[0]
    scalars : float64[n]
        Their meaning is an agreement of the round, not of the wire format.
    flags
        Bits of :class:`Flag`.
    values_checksum
        Of all values of the message (:func:`fedmpi.sparse.checksum.values_checksum`).
    segments
        Number of parts in which the values travel.
    coding
        How they travel (:mod:`fedmpi.sparse.values`).
    """

    kind: Kind
    round: int
    client: int
    base_epoch: int
    epoch: int
    mask: Mask | None
    buffers: NDArray[np.float32] = field(default_factory=_no_buffers)
    scalars: NDArray[np.float64] = field(default_factory=_no_scalars)
    flags: int = 0
    values_checksum: Checksum = field(default_factory=Checksum)
    segments: int = 1
    coding: ValueCoding = ValueCoding.RAW_F32

    @property
    def nnz(self) -> int:
        """Number of values."""
        return 0 if self.mask is None else self.mask.count()


def head_bound(layout: Layout, max_scalars: int) -> int:
    """Return the most bytes that a head of this layout can have."""
    return HEADER_SIZE + 8 * max_scalars + 4 * layout.buffer_size + (layout.size + 7) // 8


def encode_head(head: Head, layout: Layout, previous: Mask | None) -> tuple[NDArray[np.uint8], SectionSizes]:
    """Return the head's bytes, and how many belong to which section.

    Parameters
    ----------
    previous
        The mask that the receiver remembers under ``head.base_epoch``; None sends one that needs no memory.

    Raises
    ------
    WireError
        The head does not fit the layout, or the mask changed under the same epoch.
    """
    mode, section = _encode_mask(head, layout, previous)
    scalars = np.ascontiguousarray(head.scalars, "<f8").tobytes()
    buffers = np.ascontiguousarray(head.buffers, "<f4").tobytes()
    payload = scalars + buffers + section
    header = Header(
        kind=head.kind,
        coding=head.coding,
        mask_mode=mode,
        flags=head.flags,
        segments=head.segments,
        round=head.round,
        client=head.client,
        base_epoch=head.base_epoch,
        epoch=head.epoch,
        size=layout.size,
        nnz=head.nnz,
        mask_bytes=len(section),
        value_bytes=VALUE_BYTES.get(head.coding, 0) * head.nnz,
        buffers=head.buffers.size,
        scalars=head.scalars.size,
        values_xor=head.values_checksum.xor64,
        values_sum=head.values_checksum.sum64,
        layout_hash=layout.hash,
        mask_hash=bytes(16) if head.mask is None else head.mask.hash,
        payload_crc=zlib.crc32(payload),
        base_hash=bytes(8) if previous is None else previous.hash[:8],
    )
    header.check(layout, head.scalars.size)
    data = np.frombuffer(header.pack() + payload, np.uint8)
    return data, SectionSizes(HEADER_SIZE, len(section), len(buffers), len(scalars))


def peek(header_bytes: Data, layout: Layout, max_scalars: int) -> int:
    """Return the whole head's length from its first 128 bytes, so that the rest can be received.

    Raises
    ------
    WireError
        The header is broken, or announces more than this layout and ``max_scalars`` allow.
    """
    return Header.unpack(_view(header_bytes), layout, max_scalars).head_bytes


def decode_head(
    data: Data,
    layout: Layout,
    *,
    kind: Kind,
    round: int,
    client: int,
    epoch: int,
    previous: Mask | None,
    segments: int | None = None,
    max_scalars: int = 1024,
) -> Head:
    """Check and return a head.

    Parameters
    ----------
    kind, round, client
        What is expected; anything else is refused.
    epoch, previous
        The mask that this side remembers, and its number.
    segments
        Expected number of segments; None accepts any.

    Raises
    ------
    MaskOutOfStepError
        The message builds on another mask than ``previous``, or its mask comes out with another hash.
    WireError
        Anything else is wrong; the message names field, got and expected.
    """
    view = _view(data)
    header = Header.unpack(view, layout, max_scalars)
    _check_address(header, kind, round, client, segments)
    if len(view) != header.head_bytes:
        raise WireError(f"the head has {len(view)} bytes, its header says {header.head_bytes}")
    payload = view[HEADER_SIZE:]
    if zlib.crc32(payload) != header.payload_crc:
        raise WireError(
            f"head checksum is {zlib.crc32(payload):#010x}, header says {header.payload_crc:#010x}: corrupted"
        )
    scalars_end = 8 * header.scalars
    buffers_end = scalars_end + 4 * header.buffers
    return Head(
        kind=kind,
        round=round,
        client=client,
        base_epoch=header.base_epoch,
        epoch=header.epoch,
        mask=_decode_mask(header, payload[buffers_end:], layout, epoch, previous),
        buffers=np.frombuffer(payload[scalars_end:buffers_end], "<f4").astype(np.float32),
        scalars=np.frombuffer(payload[:scalars_end], "<f8").astype(np.float64),
        flags=header.flags,
        values_checksum=Checksum(header.values_xor, header.values_sum),
        segments=header.segments,
        coding=ValueCoding(header.coding),
    )


def _view(data: Data) -> memoryview:
    return data.data if isinstance(data, np.ndarray) else memoryview(data)


def _encode_mask(head: Head, layout: Layout, previous: Mask | None) -> tuple[MaskMode, bytes]:
    if head.mask is None:
        return MaskMode.ABSENT, b""
    if previous is not None and head.epoch == head.base_epoch and head.mask != previous:
        raise WireError(f"client {head.client}: the mask changed and its epoch is still {head.epoch}: number it anew")
    return encode_mask(head.mask, previous, layout)


def _check_address(header: Header, kind: Kind, round: int, client: int, segments: int | None) -> None:
    expected = {"kind": int(kind), "round": round, "client": client}
    if segments is not None:
        expected["segments"] = segments
    for name, value in expected.items():
        if getattr(header, name) != value:
            raise WireError(f"{name}: got {getattr(header, name)}, expected {value}")


def _decode_mask(header: Header, section: memoryview, layout: Layout, epoch: int, previous: Mask | None) -> Mask | None:
    who = f"client {header.client}"
    needs_memory = header.mask_mode in (MaskMode.CACHED, *DELTA_MODES)
    if header.base_epoch != epoch and (needs_memory or not header.flags & Flag.RESYNC):
        raise MaskOutOfStepError(
            f"{who}: the mask builds on epoch {header.base_epoch}, expected {epoch}: ask for a resync"
        )
    if needs_memory and previous is None:
        mode = MaskMode(header.mask_mode).name
        raise MaskOutOfStepError(f"{who}: mask mode {mode} and no mask is remembered: ask for a resync")
    if needs_memory and previous is not None and previous.hash[:8] != header.base_hash:
        found, wanted = header.base_hash.hex(), previous.hash[:8].hex()
        raise MaskOutOfStepError(
            f"{who}: mask epoch {epoch} has hash {found} there and {wanted} here: ask for a resync"
        )
    if header.mask_mode == MaskMode.ABSENT:
        return None
    mask = decode_mask(header.mask_mode, section, previous, layout, header.nnz)
    if mask.hash != header.mask_hash:
        found, wanted = mask.hash.hex(), header.mask_hash.hex()
        raise MaskOutOfStepError(
            f"{who}: the mask comes out with hash {found}, the header says {wanted}: ask for a resync"
        )
    return mask
