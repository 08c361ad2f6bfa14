"""The checksum of values that is known only when the last of them has been sent, and travels behind them.

A head that is flagged TRAILING lacks the header's two checksum fields; the same 16 bytes follow the values. So a sender
packs once, and the message has not one byte more.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import WireError
from fedmpi.sparse.checksum import Checksum
from fedmpi.sparse.header import Flag

__all__ = ["TRAILER_SIZE", "cut_checksum", "decode_trailer", "encode_trailer", "fill_checksum"]

Bytes = NDArray[np.uint8]

TRAILER_SIZE = 16
_AT, _END = 72, 88
_FLAGS_AT = 8
_FORMAT = struct.Struct("<QQ")


def cut_checksum(head: Bytes) -> Bytes:
    """Return an encoded head, flagged TRAILING, as it travels: without its checksum fields."""
    return np.concatenate((head[:_AT], head[_END:]))


def fill_checksum(data: Bytes) -> Bytes:
    """Return what arrived as a head with all its fields; zeros stand for those that were cut.

    Nothing is checked here: a head that is damaged or too short fails in `decode_head`.
    """
    if data.size < _AT or not data[_FLAGS_AT] & Flag.TRAILING:
        return data
    return np.concatenate((data[:_AT], np.zeros(TRAILER_SIZE, np.uint8), data[_AT:]))


def encode_trailer(checksum: Checksum) -> Bytes:
    """Return the 16 bytes that follow the values, uint8[16]."""
    return np.frombuffer(_FORMAT.pack(*checksum), np.uint8)


def decode_trailer(data: Bytes) -> Checksum:
    """Return the checksum of a trailer.

    Raises
    ------
    WireError
        It has not 16 bytes.
    """
    if data.size != TRAILER_SIZE:
        raise WireError(f"the checksum behind the values has {TRAILER_SIZE} bytes, got {data.size}")
    return Checksum(*_FORMAT.unpack(data.tobytes()))
