"""Heads: round trips, the field table, and every refusal by name."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.sparse import (
    HEADER_SIZE,
    Checksum,
    Flag,
    Head,
    Kind,
    Mask,
    MaskMode,
    MaskOutOfStepError,
    ValueCoding,
    decode_head,
    encode_head,
    head_bound,
    peek,
)
from tests.sparse.support import HEADER, HEADER_FIELDS, any_float32, bits, layout_of, reference_header, tensor_sizes

LAYOUT = layout_of(100, 20, 3, buffers=5)
BEFORE = Mask.from_bool(np.arange(123) % 3 != 1)
AFTER = Mask.from_bool((np.arange(123) % 3 != 1) & (np.arange(123) != 66))
EXPECTED = {"kind": Kind.UPDATE, "round": 7, "client": 2, "epoch": 4}


def update(**changes):
    fields = {
        "kind": Kind.UPDATE, "round": 7, "client": 2, "base_epoch": 4, "epoch": 5, "mask": AFTER,
        "buffers": np.arange(5, dtype=np.float32), "scalars": np.array([0.25, -1e300]), "segments": 3,
        "values_checksum": Checksum(2**64 - 1, 2**63),
    }  # fmt: skip
    return Head(**{**fields, **changes})


def encoded(previous=BEFORE, **changes):
    return bytes(encode_head(update(**changes), LAYOUT, previous)[0])


def decode(data, previous=BEFORE, **changes):
    return decode_head(data, LAYOUT, previous=previous, **{**EXPECTED, **changes})


def tampered(data, **changes):
    """Change header fields and make both checksums right again: what a wrong but consistent sender would send."""
    fields = {**reference_header(data), **changes}
    payload = bytes(data[128:])
    if "payload_crc" not in changes:
        fields["payload_crc"] = zlib.crc32(payload)
    fields["header_crc"] = 0
    raw = HEADER.pack(*(fields[name] for name in HEADER_FIELDS))
    return raw[:12] + struct.pack("<I", zlib.crc32(raw)) + raw[16:] + payload


@st.composite
def exchanges(draw):
    layout = layout_of(*draw(tensor_sizes()), buffers=draw(st.integers(0, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    previous = draw(st.none() | bits(layout.size).map(Mask.from_bool))
    mask = previous if previous is not None and draw(st.booleans()) else Mask.from_bool(draw(bits(layout.size)))
    base = draw(st.integers(0, 2**32 - 2))
    head = Head(
        kind=draw(st.sampled_from([k for k in Kind if k != Kind.REQUEST])),
        round=draw(st.integers(0, 2**32 - 1)),
        client=draw(st.integers(0, 2**32 - 1)),
        base_epoch=base,
        epoch=base if mask == previous else base + 1,
        mask=mask,
        buffers=any_float32(rng, draw(st.sampled_from([0, layout.buffer_size]))),
        scalars=rng.integers(0, 2**64, draw(st.integers(0, 6)), dtype=np.uint64).view(np.float64),
        flags=draw(st.integers(0, 7)),
        values_checksum=Checksum(draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**64 - 1))),
        segments=draw(st.integers(0, 2**16 - 1)),
    )
    return layout, previous, head


@given(exchanges())
def test_round_trip(exchange):
    layout, previous, head = exchange
    data, sections = encode_head(head, layout, previous)
    assert data.dtype == np.uint8
    assert sections == (128, data.size - 128 - 4 * head.buffers.size - 8 * head.scalars.size, 4 * head.buffers.size,
                        8 * head.scalars.size)  # fmt: skip
    assert peek(data[:HEADER_SIZE], layout, 6) == data.size <= head_bound(layout, 6)
    back = decode_head(
        data, layout, kind=head.kind, round=head.round, client=head.client, epoch=head.base_epoch, previous=previous,
        segments=head.segments,
    )  # fmt: skip
    assert back.mask == head.mask
    assert back.buffers.tobytes() == head.buffers.tobytes()
    assert back.scalars.tobytes() == head.scalars.tobytes()
    same = ("kind", "round", "client", "base_epoch", "epoch", "flags", "values_checksum", "segments", "nnz")
    assert [getattr(back, name) for name in same] == [getattr(head, name) for name in same]


def test_fields_are_where_the_specification_says():
    fields = reference_header(encoded())
    assert fields == {
        "magic": b"FMS1", "version": 2, "kind": 0, "coding": 0, "mask_mode": int(MaskMode.SUBSET), "flags": 0,
        "segments": 3, "header_crc": fields["header_crc"], "round": 7, "client": 2, "base_epoch": 4, "epoch": 5,
        "size": 123, "nnz": 81, "mask_bytes": len(encoded()) - 128 - 16 - 20, "value_bytes": 324, "buffers": 5,
        "scalars": 2, "values_xor": 2**64 - 1, "values_sum": 2**63, "layout_hash": LAYOUT.hash,
        "mask_hash": AFTER.hash, "payload_crc": zlib.crc32(encoded()[128:]),
        "base_hash": BEFORE.hash[:8], "reserved": bytes(4),
    }  # fmt: skip
    assert encoded()[128:164] == struct.pack("<2d5f", 0.25, -1e300, 0, 1, 2, 3, 4)


def test_request_has_no_values():
    data = encoded(kind=Kind.REQUEST, mask=None, flags=int(Flag.RECOVER), epoch=4)
    head = decode(data, kind=Kind.REQUEST)
    assert head.mask is None
    assert head.nnz == 0
    assert head.flags == Flag.RECOVER


def test_bytes_and_arrays_decode_alike():
    data = encoded()
    for view in (data, memoryview(data), np.frombuffer(data, np.uint8), bytearray(data)):
        assert decode(view).mask == AFTER


def test_resync_is_accepted_whatever_is_remembered():
    data = encoded(previous=None, flags=int(Flag.RESYNC), base_epoch=0)
    for previous in (None, BEFORE):
        assert decode(data, previous=previous).mask == AFTER


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (encoded(), {"epoch": 3}, "client 2: the mask builds on epoch 4, expected 3: ask for a resync"),
        (encoded(), {"previous": None}, "SUBSET and no mask is remembered: ask for a resync"),
        (encoded(), {"previous": Mask.from_bool(np.arange(123) % 3 != 2)}, "epoch 4 has hash .*: ask for a resync"),
        (encoded(mask=BEFORE, epoch=4), {"previous": AFTER}, "epoch 4 has hash .*: ask for a resync"),
        (encoded(previous=None, base_epoch=0), {}, "builds on epoch 0, expected 4"),
        (encoded(flags=int(Flag.RESYNC)), {"epoch": 3}, "builds on epoch 4, expected 3"),
        (tampered(encoded(), mask_hash=bytes(16)), {}, "comes out with hash .*, the header says 00"),
    ],
)
def test_masks_out_of_step_ask_for_a_resync(data, changes, message):
    with pytest.raises(MaskOutOfStepError, match=message):
        decode(data, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": Kind.MODEL}, "kind: got 0, expected 1"),
        ({"round": 6}, "round: got 7, expected 6"),
        ({"round": 8}, "round: got 7, expected 8"),
        ({"client": 1}, "client: got 2, expected 1"),
        ({"segments": 4}, "segments: got 3, expected 4"),
        ({"max_scalars": 1}, "scalars: got 2, at most 1 fit"),
    ],
)
def test_replayed_and_misaddressed_messages_are_refused(changes, message):
    with pytest.raises(WireError, match=message):
        decode(encoded(), **changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"magic": b"FMS2"}, "not a fedmpi message: it starts with b'FMS2'"),
        ({"version": 3}, "wire format version 3, this program reads 2"),
        ({"kind": 5}, "kind 5 is unknown; known are 0 UPDATE, 1 MODEL"),
        ({"coding": 5}, "value coding 5 is unknown"),
        ({"coding": ValueCoding.LOSSLESS}, "value bytes: got 324, expected 0"),
        ({"coding": ValueCoding.BF16}, "value bytes: got 324, expected 162"),
        ({"mask_mode": 7}, "mask mode 7 is unknown"),
        ({"flags": 32}, "flags 0x0020 has unknown bits"),
        ({"size": 124}, "size: got 124, expected 123"),
        ({"nnz": 124}, "nnz: got 124, at most 123"),
        ({"nnz": 2**64 - 1}, "nnz: got 18446744073709551615"),
        ({"nnz": 82}, "value bytes: got 324, expected 328"),
        ({"value_bytes": 320}, "value bytes: got 320, expected 324"),
        ({"value_bytes": 332, "nnz": 83}, "keeps 81 entries, the header says 83"),
        ({"mask_bytes": 17}, "mask bytes: got 17, at most 16"),
        ({"mask_bytes": 2**63}, "mask bytes"),
        ({"buffers": 4}, "buffers: got 4, expected 5"),
        ({"buffers": 2**32 - 1}, "buffers: got 4294967295"),
        ({"scalars": 1025}, "scalars: got 1025, at most 1024"),
        ({"scalars": 3}, "bytes, its header says"),
        ({"layout_hash": b"12345678"}, "layout hash 3132333435363738, expected .*: different models"),
        ({"mask_mode": MaskMode.NONE, "mask_bytes": 0}, "nnz of a message that keeps all: got 81, expected 123"),
        ({"mask_mode": MaskMode.CACHED}, "mask bytes: got"),
        ({"mask_mode": MaskMode.CACHED, "mask_bytes": 0}, "epoch of an unchanged mask: got 5, expected 4"),
        ({"mask_mode": MaskMode.ABSENT, "mask_bytes": 0}, "nnz of a message without mask: got 81"),
        ({"mask_mode": MaskMode.ABSENT, "mask_bytes": 0, "nnz": 0, "value_bytes": 0}, "only a REQUEST has no values"),
        ({"kind": Kind.REQUEST}, "only a REQUEST has no values"),
        ({"reserved": b"\1" + bytes(3)}, "reserved header bytes are 01000000"),
        ({"payload_crc": 5}, "head checksum is 0x[0-9a-f]{8}, header says 0x00000005: corrupted"),
    ],
)
def test_consistent_nonsense_is_refused_by_name(fields, message):
    with pytest.raises(WireError, match=message):
        decode(tampered(encoded(), **fields))


@pytest.mark.parametrize("field", ["size", "nnz", "mask_bytes", "value_bytes", "buffers", "scalars"])
def test_peek_bounds_lengths_before_anything_is_allocated(field):
    width = 32 if field in ("buffers", "scalars") else 64
    with pytest.raises(WireError, match=field.replace("_", " ")):
        peek(tampered(encoded(), **{field: 2**width - 1})[:HEADER_SIZE], LAYOUT, 2)


@given(st.binary(max_size=300))
def test_noise_is_refused(data):
    with pytest.raises(WireError):
        decode(data)
    with pytest.raises(WireError):
        peek(data, LAYOUT, 2)


@pytest.mark.parametrize(
    "data",
    [
        encoded(),
        encoded(previous=None),
        encoded(mask=BEFORE, epoch=4),
        encoded(kind=Kind.REQUEST, mask=None),
        encoded(mask=Mask.full(123)),
    ],
)
def test_every_corrupted_byte_and_every_cut_is_refused(data):
    """Every byte to every other value is 40 000 decodes; each bit of it and three other values see the same paths."""
    kind = Kind(data[5])
    previous = BEFORE
    for at in range(len(data)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255, 0x55, 0xAA):
            broken = bytearray(data)
            broken[at] ^= flip
            with pytest.raises(WireError):
                decode(broken, previous=previous, kind=kind)
    for end in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:end], previous=previous, kind=kind)
    for tail in (b"\0", bytes(1000)):
        with pytest.raises(WireError, match="its header says"):
            decode(data + tail, previous=previous, kind=kind, epoch=4)


@given(st.data())
def test_corrupted_sections_under_a_right_checksum(data):
    """A sender with a bug: sections are changed and all checksums fit. Decoded to the same mask, or refused."""
    message = bytearray(encoded(previous=data.draw(st.sampled_from([None, BEFORE]))))
    start = 128 + 16 + 20
    at = data.draw(st.integers(start, len(message) - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    try:
        head = decode(tampered(message))
    except WireError:
        return
    assert head.mask == AFTER


def test_changed_mask_needs_a_new_number():
    with pytest.raises(WireError, match="client 2: the mask changed and its epoch is still 4: number it anew"):
        encoded(epoch=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"round": -1}, "does not fit the wire format"),
        ({"client": 2**32}, "does not fit the wire format"),
        ({"segments": 2**16}, "does not fit the wire format"),
        ({"flags": 32}, "unknown bits"),
        ({"buffers": np.zeros(4, np.float32)}, "buffers: got 4, expected 5"),
        ({"kind": Kind.REQUEST}, "only a REQUEST"),
        ({"mask": None}, "only a REQUEST"),
    ],
)
def test_sender_refuses_what_no_receiver_would_take(changes, message):
    with pytest.raises(WireError, match=message):
        encoded(**changes)
