"""Mask sections: round trips, the plain reference decoder, the choice of the form, and refusals."""

import zlib
from math import comb, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.sparse import Mask, MaskMode, bitcode, decode_mask, encode_mask, golomb
from fedmpi.sparse.mask_codec import mask_bound
from tests.sparse.support import bits, layout_of, layouts_with_mask, reference_mask, reference_records, tensor_sizes


def sizes_of(layout):
    return [t.slice.stop - t.slice.start for t in layout.tensors]


def check(mask, previous, layout):
    """Encode, decode by package and by reference; return mode and section."""
    mode, section = encode_mask(mask, previous, layout)
    assert decode_mask(mode, section, previous, layout, mask.count()) == mask
    before = None if previous is None else previous.to_bool().tolist()
    assert reference_mask(mode, section, before, sizes_of(layout)) == mask.to_bool().tolist()
    assert len(section) <= mask_bound(layout.size)
    return mode, section


@given(layouts_with_mask())
def test_first_mask(drawn):
    layout, mask = drawn
    mode, section = check(mask, None, layout)
    assert mode in (MaskMode.NONE, MaskMode.BITMAP, MaskMode.TABLE)
    assert (mode == MaskMode.NONE) == mask.is_full == (section == b"" and mask.is_full)


@given(layouts_with_mask(), st.data())
def test_any_change(drawn, data):
    layout, previous = drawn
    check(Mask.from_bool(data.draw(bits(layout.size))), previous, layout)


@given(layouts_with_mask(), st.data())
def test_monotone_change(drawn, data):
    layout, previous = drawn
    mode, _ = check(previous & Mask.from_bool(data.draw(bits(layout.size))), previous, layout)
    assert mode != MaskMode.XOR


@given(layouts_with_mask())
def test_unchanged_mask_is_free(drawn):
    layout, mask = drawn
    expected = MaskMode.NONE if mask.is_full else MaskMode.CACHED
    assert check(mask, mask, layout) == (expected, b"")


@given(tensor_sizes(), st.data())
def test_every_coder_on_every_vector(sizes, data):
    """Each coder that can say a vector says it, not only the one that would be chosen; planned sizes are exact."""
    for size in sizes:
        vector = data.draw(bits(size))
        records = [bitcode.plan_bits(vector), bitcode.BitPlan(bitcode.Coder.BITMAP, 1 + (size + 7) // 8)]
        for inverted in (False, True):
            positions = np.flatnonzero(vector != inverted)
            if positions.size:
                m = data.draw(st.integers(1, size))
                coder = bitcode.Coder.GOLOMB_INVERTED if inverted else bitcode.Coder.GOLOMB
                records += [bitcode.BitPlan(coder, 0, golomb.plan(positions, size))]
                quotients = (np.diff(positions, prepend=-1) - 1) // m
                unary_bytes = -(-int(quotients.sum() + positions.size) // 8)
                records += [bitcode.BitPlan(coder, 0, golomb.GolombPlan(m, unary_bytes, 0))]
        for record in records:
            encoded = bitcode.encode_bits(vector, record)
            reader = bitcode.Reader(encoded)
            assert np.array_equal(bitcode.decode_bits(reader, size), vector)
            reader.finish()
            assert reference_records(encoded, [size]) == ([vector.tolist()], len(encoded))
        if records[0].coder != bitcode.Coder.HUFFMAN:
            assert len(bitcode.encode_bits(vector, records[0])) == records[0].size


def test_huffman_is_chosen_where_it_is_shortest():
    """Three byte values out of 256: gaps of single bits cannot see that, a code of bytes can."""
    rng = np.random.default_rng(2)
    vector = np.unpackbits(rng.choice([0x0F, 0xF0, 0x3C], 40_000).astype(np.uint8)).astype(bool)
    layout = layout_of(vector.size)
    mode, section = encode_mask(Mask.from_bool(vector), None, layout)
    assert mode == MaskMode.TABLE
    assert section[1] == bitcode.Coder.HUFFMAN
    assert len(section) < 1.01 * 40_000 * 2 / 8  # deflate's end of block is a fourth symbol: two bits each
    assert decode_mask(mode, section, None, layout, int(vector.sum())) == Mask.from_bool(vector)


def test_huffman_estimate_is_a_real_huffman_length():
    rng = np.random.default_rng(3)
    data = rng.choice(256, 30_000, p=(w := rng.random(256) ** 6) / w.sum()).astype(np.uint8)
    counts = np.bincount(data)
    predicted = bitcode._huffman_bits(counts[counts > 0].tolist()) / 8
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    actual = len(coder.compress(data.tobytes()) + coder.flush())
    assert predicted <= actual <= predicted + 200


def test_one_record_serves_a_small_change_over_many_tensors():
    layout = layout_of(*[64] * 400)
    before = np.ones(layout.size, bool)
    after = before.copy()
    after[[5, 9000, 20_000]] = False
    mode, section = check(Mask.from_bool(after), Mask.from_bool(before), layout)
    assert mode == MaskMode.SUBSET
    assert len(section) < 16


def test_tensors_of_different_density_get_their_own_coder():
    rng = np.random.default_rng(4)
    densities = [0.01, 0.1, 0.5, 0.9, 1.0, 0.0]
    vectors = [rng.random(40_000) < density for density in densities]
    layout = layout_of(*[40_000] * len(vectors))
    mask = Mask.from_bool(np.concatenate(vectors))
    mode, section = check(mask, None, layout)
    entropy = sum(bitcode.entropy_bytes(int(v.sum()), v.size) for v in vectors)
    assert mode == MaskMode.TABLE
    assert entropy <= len(section) <= 1.01 * entropy + 64
    pooled = bitcode.entropy_bytes(mask.count(), mask.size)
    assert len(section) < 0.6 * pooled


def test_entropy_is_the_log_of_the_number_of_masks():
    exact = log2(comb(1000, 137)) / 8
    assert exact <= bitcode.entropy_bytes(137, 1000) <= exact + log2(1001) / 8
    assert bitcode.entropy_bytes(0, 10) == bitcode.entropy_bytes(10, 10) == 0


def test_table_is_taken_when_the_change_says_more():
    rng = np.random.default_rng(1)
    layout = layout_of(100_000)
    before = rng.random(layout.size) < 0.5
    after = rng.random(layout.size) < 0.01
    mode, _ = check(Mask.from_bool(after), Mask.from_bool(before), layout)
    assert mode == MaskMode.TABLE


def section_of(*records, partition=0):
    return bytes([partition]) + b"".join(records)


@pytest.mark.parametrize(
    ("mode", "section", "message"),
    [
        (7, b"", "mask mode 7 is unknown"),
        (MaskMode.ABSENT, b"", "mask mode 6 is unknown here"),
        (MaskMode.NONE, b"x", "NONE has an empty section, got 1"),
        (MaskMode.CACHED, b"", "CACHED needs a previous mask"),
        (MaskMode.SUBSET, section_of(b"\0\0"), "SUBSET needs a previous mask"),
        (MaskMode.BITMAP, bytes(16), "the bitmap of 136 entries has 17 bytes"),
        (MaskMode.BITMAP, bytes(18), "18 bytes, at most 17"),
        (MaskMode.TABLE, b"", "byte 1 is needed"),
        (MaskMode.TABLE, section_of(b"\0\0", partition=2), "unknown partition 2"),
        (MaskMode.TABLE, section_of(b"\0"), "is cut"),
        (MaskMode.TABLE, section_of(b"\0\0\0"), "1 bytes after its end"),
        (MaskMode.TABLE, section_of(b"\6\0"), "unknown coder 6"),
        (MaskMode.TABLE, section_of(b"\0", b"\2"), "is cut"),
        (MaskMode.TABLE, section_of(b"\0", b"\2\2"), "keeps 1 entries, the header says 0"),
        (MaskMode.TABLE, section_of(b"\3\x01\x01\x00", b"\0"), "none may be 0"),
        (MaskMode.TABLE, section_of(b"\3\x00\x01\x01\x01", b"\0"), "none may be 0"),
        (MaskMode.TABLE, section_of(b"\3\x01\x00\x01\x01", b"\0"), "none may be 0"),
        (MaskMode.TABLE, section_of(b"\3\x81\x01\x01\x01\x01", b"\0"), "announces 129, more than the 128"),
        (MaskMode.TABLE, section_of(b"\3\xff\xff\xff\xff\xff\x7f", b"\0"), "more than the 128"),
        (MaskMode.TABLE, section_of(b"\3\x81\x00\x01\x01\x01", b"\0"), "pads a number"),
        (MaskMode.TABLE, section_of(b"\3\x01\x01\x01\x03", b"\0"), "ends 2 codes in 1 bytes, 1 positions"),
        (MaskMode.TABLE, section_of(b"\3\x02\x01\x01\x01", b"\0"), "ends 1 codes in 1 bytes, 2 positions"),
        (MaskMode.TABLE, section_of(b"\3\x01\x01\x02\x01\x00", b"\0"), "ends 1 codes in 2 bytes"),
        (MaskMode.TABLE, section_of(b"\3\x01\x50\x01\x08\x00", b"\0"), "gap of 240 or more, the tensor has 128"),
        (MaskMode.TABLE, section_of(b"\3\x02\x40\x01\x06\x55\x01\x01", b"\0"), "reaches position 128"),
        (MaskMode.TABLE, section_of(b"\3\x01\x03\x01\x01\x02", b"\0"), "padding that is not zero"),
        (MaskMode.TABLE, section_of(b"\5\x02\xff\xff", b"\0"), "Huffman stream is broken"),
    ],
)
def test_wrong_sections_are_refused(mode, section, message):
    layout = layout_of(128, 8)
    with pytest.raises(WireError, match=message):
        decode_mask(mode, section, None, layout, 0)


def deflated(data):
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(data) + coder.flush()


@pytest.mark.parametrize("data", [bytes(127), bytes(129), bytes(10_000_000)])
def test_deflate_stream_of_wrong_length_is_refused(data):
    """Also a bomb: ten megabytes in a section for 1024 entries."""
    layout = layout_of(1024 * 80)
    stream = deflated(data)
    size = bitcode._varint(len(stream))
    with pytest.raises(WireError, match="not exactly 10240"):
        decode_mask(MaskMode.TABLE, section_of(b"\5" + size + stream), None, layout, 0)


def test_deflate_stream_with_a_tail_is_refused():
    layout = layout_of(1024)
    stream = deflated(bytes(128)) + b"x"
    with pytest.raises(WireError, match="not exactly 128"):
        decode_mask(MaskMode.TABLE, section_of(b"\5" + bytes([len(stream)]) + stream), None, layout, 0)


def test_bits_beyond_a_tensor_are_refused():
    layout = layout_of(128, 4)
    with pytest.raises(WireError, match="beyond a tensor's 4 entries"):
        decode_mask(MaskMode.TABLE, section_of(b"\0", b"\2\x1f"), None, layout, 4)


def test_other_sizes_are_refused():
    with pytest.raises(WireError, match="the mask has 65 entries, the layout 64"):
        encode_mask(Mask.full(65), None, layout_of(64))
    with pytest.raises(WireError, match="the mask has 65 entries, the layout 64"):
        decode_mask(MaskMode.CACHED, b"", Mask.full(65), layout_of(64), 64)


@given(st.binary(max_size=40), st.sampled_from([2, 3, 4, 5]), tensor_sizes(), st.data())
def test_noise_is_decoded_or_refused(section, mode, sizes, data):
    """No other exception, and what is accepted keeps the promised number of entries."""
    layout = layout_of(*sizes)
    previous = Mask.from_bool(data.draw(bits(layout.size)))
    nnz = data.draw(st.integers(0, layout.size))
    try:
        mask = decode_mask(mode, section, previous, layout, nnz)
    except WireError:
        return
    assert mask.count() == nnz
    assert reference_mask(mode, section, previous.to_bool().tolist(), sizes) == mask.to_bool().tolist()
