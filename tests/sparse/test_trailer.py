import struct
import zlib

import numpy as np
import pytest

from fedmpi.errors import WireError
from fedmpi.sparse import (
    Checksum,
    Flag,
    Head,
    Kind,
    Mask,
    cut_checksum,
    decode_head,
    decode_trailer,
    encode_head,
    encode_trailer,
    fill_checksum,
)
from tests.sparse.support import layout_of

LAYOUT = layout_of(100, 23, buffers=5)
MASK = Mask.from_bool(np.arange(123) % 3 != 1)


def model(flags: int, kind: Kind = Kind.MODEL, xor64: int = 0, sum64: int = 0) -> Head:
    buffers, checksum = np.arange(5, dtype=np.float32), Checksum(xor64, sum64)
    return Head(kind, 7, 2, 4, 4, MASK, buffers=buffers, flags=flags, values_checksum=checksum)


def encoded(head: Head) -> np.ndarray:
    return encode_head(head, LAYOUT, MASK)[0]


def decoded(data: np.ndarray, kind: Kind = Kind.MODEL) -> Head:
    return decode_head(data, LAYOUT, kind=kind, round=7, client=2, epoch=4, previous=MASK)


@pytest.mark.parametrize("kind", [Kind.MODEL, Kind.RECOVERED, Kind.EVALUATION])
def test_head_and_trailer_have_as_many_bytes_as_the_head_alone(kind):
    head, checksum = model(Flag.TRAILING, kind), Checksum(2**64 - 2, 5)
    travels, trailer = cut_checksum(encoded(head)), encode_trailer(checksum)
    assert travels.size + trailer.size == 128 + 20
    assert bytes(travels[:72]) == bytes(encoded(head)[:72])
    assert bytes(travels[72:80]) == LAYOUT.hash  # what stands at byte 88 of the header
    assert bytes(trailer) == struct.pack("<QQ", 2**64 - 2, 5)
    back = decoded(fill_checksum(travels), kind)
    assert (back.mask, back.flags) == (MASK, Flag.TRAILING)
    assert back.buffers.tolist() == [0, 1, 2, 3, 4]
    assert decode_trailer(trailer) == checksum


def test_a_head_that_is_whole_stays_as_it_is():
    for flags in (0, int(Flag.SHARED)):
        data = encoded(model(flags))
        assert fill_checksum(data) is data


@pytest.mark.parametrize("length", [0, 8, 9, 71, 72, 111, 131])
def test_a_head_that_is_cut_short_is_refused(length):
    with pytest.raises(WireError):
        decoded(fill_checksum(cut_checksum(encoded(model(Flag.TRAILING)))[:length]))


def test_every_flipped_bit_of_a_head_is_found():
    whole = cut_checksum(encoded(model(Flag.TRAILING)))
    for bit in range(8 * whole.size):
        data = whole.copy()
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            decoded(fill_checksum(data))


def test_version_1_is_refused_by_name():
    data = encoded(model(0)).copy()
    data[4], data[12:16] = 1, 0
    data[12:16] = np.frombuffer(struct.pack("<I", zlib.crc32(data[:128])), np.uint8)
    with pytest.raises(WireError, match="wire format version 1, this program reads 2"):
        decoded(data)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (model(Flag.TRAILING, Kind.UPDATE), "flags 0x0008 do not fit a UPDATE message"),
        (model(Flag.SHARED, Kind.UPDATE, xor64=1), "values xor64: got 1, expected 0"),
        (model(Flag.SHARED | Flag.TRAILING, Kind.UPDATE), "flags 0x0018 do not fit a UPDATE message"),
        (model(Flag.SHARED | Flag.TRAILING), "flags 0x0018 do not fit a MODEL message"),
        (model(Flag.TRAILING, xor64=1), "values xor64: got 1, expected 0"),
        (model(Flag.SHARED, sum64=1), "values sum64: got 1, expected 0"),
    ],
)
def test_ways_that_do_not_exist(head, message):
    with pytest.raises(WireError, match=message):
        encoded(head)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_trailer_of_another_length(length):
    with pytest.raises(WireError, match=f"has 16 bytes, got {length}"):
        decode_trailer(np.zeros(length, np.uint8))
