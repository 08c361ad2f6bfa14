"""What the tests of this room share: layouts without a module, masks to draw, and a decoder that follows the text.

The decoder reads docs/wire-format.md bit by bit in plain Python, and shares no code with the package.
"""

import struct
import zlib

import numpy as np
from hypothesis import strategies as st

from fedmpi.sparse import Layout, Mask

SIZES = [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 200]


def layout_of(*sizes, buffers=0):
    """A layout of vectors; a size above 8 is a matrix, hence prunable."""
    shapes = tuple((size // 4, 4) if size > 8 and size % 4 == 0 else (size,) for size in sizes)
    names = tuple(f"t{i}" for i in range(len(sizes)))
    return Layout(names, shapes, ("b",) if buffers else (), ((buffers,),) if buffers else ())


@st.composite
def tensor_sizes(draw):
    return draw(st.lists(st.one_of(st.sampled_from(SIZES), st.integers(0, 300)), max_size=4))


@st.composite
def bits(draw, size):
    """Bits of a wide range of densities: chosen byte by byte by the search, independent, or in runs."""
    kind = draw(st.sampled_from(["bytes", "iid", "runs", "all", "none"]))
    if kind in ("all", "none"):
        return np.full(size, kind == "all")
    if kind == "bytes":
        raw = draw(st.binary(min_size=(size + 7) // 8, max_size=(size + 7) // 8))
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=size).astype(bool)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.003, 0.02, 0.1, 0.3, 0.5, 0.7, 0.95]))
    if kind == "iid":
        return rng.random(size) < density
    return np.repeat(rng.random(size // 16 + 1) < density, 16)[:size]


@st.composite
def layouts_with_mask(draw):
    layout = layout_of(*draw(tensor_sizes()))
    return layout, Mask.from_bool(draw(bits(layout.size)))


def any_float32(rng, size):
    """Float32 of arbitrary bits: NaNs of all payloads, infinities, subnormals and signed zeros included."""
    raw = rng.integers(0, 2**32, size, dtype=np.uint32)
    special = np.array([0x80000000, 0, 0x7F800000, 0xFF800000, 0x7FC00001, 0x7F800001, 0xFFC12345, 1], np.uint32)
    odd = rng.random(size) < 0.3
    raw[odd] = rng.choice(special, int(odd.sum()))
    return raw.view(np.float32)


def bits_equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class Bitstream:
    """Bits of a byte string, lowest bit of each byte first."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def bit(self):
        self.at += 1
        return self.data[(self.at - 1) // 8] >> (self.at - 1) % 8 & 1


def reference_records(data, sizes):
    """Decode one record per size; returns the lists of bits and the bytes that were used."""
    at, vectors = 0, []
    for size in sizes:
        vector, used = _reference_record(data[at:], size)
        vectors.append(vector)
        at += used
    return vectors, at


def _varint(data, at):
    value = shift = 0
    while True:
        value += (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def _stream_bits(data, count):
    stream = Bitstream(data)
    return [stream.bit() for _ in range(count)]


def _reference_record(data, size):
    coder, at = data[0], 1
    if coder in (0, 1):
        return [bool(coder)] * size, at
    if coder == 2:
        return [bool(bit) for bit in _stream_bits(data[at:], size)], at + (size + 7) // 8
    if coder == 5:
        length, at = _varint(data, at)
        bitmap = zlib.decompress(data[at : at + length], wbits=-15)
        return [bool(bit) for bit in _stream_bits(bitmap, size)], at + length
    gaps, at = _reference_gaps(data, at)
    vector, position = [coder == 4] * size, -1
    for gap in gaps:
        position += gap + 1
        vector[position] = coder == 3
    return vector, at


def _reference_gaps(data, at):
    count, at = _varint(data, at)
    m, at = _varint(data, at)
    unary_bytes, at = _varint(data, at)
    unary = Bitstream(data[at : at + unary_bytes])
    at += unary_bytes
    quotients = [0] * count
    for i in range(count):
        while not unary.bit():
            quotients[i] += 1
    width = (m - 1).bit_length()
    rows, cut = max(width - 1, 0), 2**width - m
    leading = _stream_bits(data[at:], rows * count)
    at += (rows * count + 7) // 8
    remainders = [sum(leading[row * count + i] << row for row in range(rows)) for i in range(count)]
    long = [i for i in range(count) if m > 1 and remainders[i] >= cut]
    for i, bit in zip(long, _stream_bits(data[at:], len(long)), strict=True):
        remainders[i] = 2 * remainders[i] + bit - cut
    at += (len(long) + 7) // 8
    return [q * m + r for q, r in zip(quotients, remainders, strict=True)], at


def reference_mask(mode, section, previous, tensor_sizes):
    """Decode a mask section; ``previous`` and the result are lists of bools."""
    size = sum(tensor_sizes)
    if mode == 0:
        return [True] * size
    if mode == 1:
        return list(previous)
    if mode == 2:
        stream = Bitstream(section)
        return [bool(stream.bit()) for _ in range(size)]
    parts = [size] if section[0] == 1 else list(tensor_sizes)
    starts = [sum(parts[:i]) for i in range(len(parts))]
    if mode == 4:
        survivors = [[i for i in range(lo, lo + n) if previous[i]] for lo, n in zip(starts, parts, strict=True)]
        vectors, used = reference_records(section[1:], [len(part) for part in survivors])
        mask = list(previous)
        for part, died in zip(survivors, vectors, strict=True):
            for place, dead in zip(part, died, strict=True):
                mask[place] = mask[place] and not dead
    else:
        vectors, used = reference_records(section[1:], parts)
        mask = [bit for vector in vectors for bit in vector]
        if mode == 5:
            mask = [a != b for a, b in zip(mask, previous, strict=True)]
    assert used == len(section) - 1
    return mask


HEADER = struct.Struct("<4sBBBBHHIIIIIQQQQIIQQ8s16sI8s4s")
HEADER_FIELDS = [
    "magic", "version", "kind", "coding", "mask_mode", "flags", "segments", "header_crc", "round", "client",
    "base_epoch", "epoch", "size", "nnz", "mask_bytes", "value_bytes", "buffers", "scalars", "values_xor", "values_sum",
    "layout_hash", "mask_hash", "payload_crc", "base_hash", "reserved",
]  # fmt: skip


def reference_header(data):
    return dict(zip(HEADER_FIELDS, HEADER.unpack(bytes(data[:128])), strict=True))


def _read_unary(stream, longest):
    zeros = 0
    while not stream.bit():
        zeros += 1
        assert zeros <= longest
    return zeros


def _ordered(word):
    return word ^ (0xFFFFFFFF if word >> 31 else 0x80000000)


def reference_values(data, old, count):
    """Decode a lossless record; ``old`` is a list of float32 bit patterns or None, so is the result."""
    mode = data[0]
    if mode == 0:
        return list(struct.unpack(f"<{count}I", data[1:]))
    if mode == 3:
        return list(old)
    exponents = [word >> 23 & 255 for word in old] if mode == 2 else [0] * count
    held = sorted(set(exponents))
    table = dict(zip(held, data[1:], strict=False)) if mode == 2 else {0: 24}
    at = 1 + (len(held) if mode == 2 else 1)
    widths = [table[e] for e in exponents]
    low = Bitstream(data[at : at + (sum(widths) + 7) // 8])
    marks = Bitstream(data[at + (sum(widths) + 7) // 8 :])
    lows = [sum(low.bit() << i for i in range(width)) for width in widths]
    quotients = [_read_unary(marks, 24) for _ in range(count)]
    escaped = [i for i in range(count) if quotients[i] == 24]
    for i, quotient in zip(
        escaped, struct.unpack(f"<{len(escaped)}I", data[len(data) - 4 * len(escaped) :]), strict=True
    ):
        quotients[i] = quotient
    words = []
    for i in range(count):
        z = (quotients[i] << widths[i]) + lows[i]
        if mode == 1:
            rotated = ((data[1] << 24 | 0xFFFFFF) - z) % 2**32
            words.append(rotated >> 1 | (rotated & 1) << 31)
        else:
            order = (_ordered(old[i]) + (-(z + 1) // 2 if z % 2 else z // 2)) % 2**32
            words.append(order ^ (0x80000000 if order >> 31 else 0xFFFFFFFF))
    return words
