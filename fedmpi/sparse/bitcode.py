"""One bit vector per tensor, each by the coder that needs the fewest bytes for it.

The vector may be a mask, the flips between two masks or the survivors that died: what the bits mean is
:mod:`fedmpi.sparse.mask_codec`'s business.

A record is one byte that names the coder, then, where the coder needs them, the number of coded positions, the Golomb
parameter and the length of a stream as variable-length integers, then the stream.
"""

import zlib
from enum import IntEnum
from heapq import heapify, heappop, heapreplace
from math import log2
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import WireError
from fedmpi.sparse import golomb

__all__ = ["BitPlan", "Coder", "Reader", "decode_bits", "encode_bits", "entropy_bytes", "plan_bits"]

Bits = NDArray[np.bool_]


class Coder(IntEnum):
    """How the bits of one tensor are coded."""

    NONE = 0  # no bit is set
    ALL = 1  # every bit is set
    BITMAP = 2  # as they are
    GOLOMB = 3  # gaps between set bits
    GOLOMB_INVERTED = 4  # gaps between clear bits
    HUFFMAN = 5  # the bitmap's bytes, Huffman coded (a raw deflate stream without matches)


class BitPlan(NamedTuple):
    """The coder for one vector, and the bytes that its record will take (estimated for HUFFMAN, else exact)."""

    coder: Coder
    size: int
    gaps: golomb.GolombPlan | None = None


def entropy_bytes(count: int, size: int) -> float:
    """Return the entropy of ``size`` independent bits of which ``count`` are set, in bytes."""
    if count in (0, size):
        return 0.0
    p = count / size
    return -size * (p * log2(p) + (1 - p) * log2(1 - p)) / 8


def plan_bits(bits: Bits) -> BitPlan:
    """Choose the coder of one bool vector from counts; nothing is encoded."""
    count = int(np.count_nonzero(bits))
    if count in (0, bits.size):
        return BitPlan(Coder.ALL if count else Coder.NONE, 1)
    bitmap = BitPlan(Coder.BITMAP, 1 + (bits.size + 7) // 8)
    inverted = 2 * count > bits.size
    return min(bitmap, _plan_golomb(bits, inverted=inverted), _plan_huffman(bits, bitmap.size), key=lambda p: p.size)


def encode_bits(bits: Bits, chosen: BitPlan) -> bytes:
    """Return the record of one bool vector under the coder that was planned for it."""
    if chosen.coder in (Coder.NONE, Coder.ALL):
        return bytes([chosen.coder])
    if chosen.gaps is not None:
        positions = _coded_positions(bits, inverted=chosen.coder == Coder.GOLOMB_INVERTED)
        numbers = (positions.size, chosen.gaps.m, chosen.gaps.unary_bytes)
        return bytes([chosen.coder]) + b"".join(map(_varint, numbers)) + golomb.encode(positions, chosen.gaps.m)
    bitmap = np.packbits(bits, bitorder="little")
    if chosen.coder == Coder.HUFFMAN:
        stream = _deflate(bitmap)
        if len(stream) < bitmap.size:  # the plan was an estimate: never pay for a miss
            return bytes([Coder.HUFFMAN]) + _varint(len(stream)) + stream
    return bytes([Coder.BITMAP]) + bitmap.tobytes()


def decode_bits(reader: "Reader", size: int) -> Bits:
    """Return the next record's bits, bool[size].

    Raises
    ------
    WireError
        Unknown coder, a stream that is cut, too long, not canonical or does not fit ``size``.
    """
    coder = reader.byte()
    if coder > max(Coder):
        raise WireError(f"mask section names unknown coder {coder}; known are {', '.join(Coder.__members__)}")
    if coder in (Coder.NONE, Coder.ALL):
        return np.full(size, coder == Coder.ALL)
    if coder in (Coder.GOLOMB, Coder.GOLOMB_INVERTED):
        return _decode_golomb(reader, size, inverted=coder == Coder.GOLOMB_INVERTED)
    bitmap_bytes = (size + 7) // 8
    if coder == Coder.HUFFMAN:
        bitmap = _inflate(reader.take(reader.varint(bitmap_bytes)), bitmap_bytes)
    else:
        bitmap = np.frombuffer(reader.take(bitmap_bytes), np.uint8)
    bits = np.unpackbits(bitmap, bitorder="little")
    if bits[size:].any():
        raise WireError(f"mask section sets bits beyond a tensor's {size} entries")
    return bits[:size].view(np.bool_)


class Reader:
    """A cursor over a mask section that refuses to read past the end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, length: int) -> memoryview:
        """Return the next ``length`` bytes."""
        if length > len(self._data) - self._at:
            raise WireError(f"mask section of {len(self._data)} bytes is cut: byte {self._at + length} is needed")
        self._at += length
        return self._data[self._at - length : self._at]

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def varint(self, bound: int) -> int:
        """Return the next variable-length integer (seven bits a byte, lowest first), at most ``bound``."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if value > bound or shift > 63 or (byte == 0 and shift > 7):
                raise WireError(f"mask section announces {value}, more than the {bound} that fit, or pads a number")
            if byte < 128:
                return value

    def finish(self) -> None:
        """Refuse bytes that nobody asked for."""
        if self._at != len(self._data):
            raise WireError(f"mask section has {len(self._data) - self._at} bytes after its end")


def _plan_golomb(bits: Bits, *, inverted: bool) -> BitPlan:
    positions = _coded_positions(bits, inverted=inverted)
    chosen = golomb.plan(positions, bits.size)
    head = 1 + sum(len(_varint(number)) for number in (positions.size, chosen.m, chosen.unary_bytes))
    return BitPlan(Coder.GOLOMB_INVERTED if inverted else Coder.GOLOMB, head + chosen.size, chosen)


def _plan_huffman(bits: Bits, bitmap_size: int) -> BitPlan:
    """Estimate: the exact length of a Huffman code for the bitmap's bytes, and 80 bytes of tables per 32 KiB of it."""
    histogram = np.bincount(np.packbits(bits, bitorder="little"), minlength=256)
    tables = 80 * (1 + bitmap_size // (1 << 15))
    return BitPlan(Coder.HUFFMAN, 4 + _huffman_bits(histogram[histogram > 0].tolist()) // 8 + tables)


def _huffman_bits(counts: list[int]) -> int:
    """Return the bits that a Huffman code spends on symbols that occur ``counts`` times and one end-of-block symbol."""
    heap = [1, *counts]
    heapify(heap)
    total = 0
    while len(heap) > 1:  # each merge of two subtrees makes all their symbols one bit longer
        merged = heappop(heap) + heap[0]
        heapreplace(heap, merged)
        total += merged
    return total


def _coded_positions(bits: Bits, *, inverted: bool) -> golomb.Positions:
    return np.flatnonzero(~bits if inverted else bits)


def _decode_golomb(reader: Reader, size: int, *, inverted: bool) -> Bits:
    count, m, unary_bytes = reader.varint(size), reader.varint(size), reader.varint((size + 7) // 8)
    if 0 in (count, m, unary_bytes):
        raise WireError(f"mask section codes {count} positions with m = {m} in {unary_bytes} bytes: none may be 0")
    bits = np.full(size, inverted)
    bits[golomb.decode(reader.take, unary_bytes, count, m, size)] = not inverted
    return bits


def _deflate(bitmap: NDArray[np.uint8]) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(bitmap.tobytes()) + coder.flush()


def _inflate(stream: memoryview, size: int) -> NDArray[np.uint8]:
    decoder = zlib.decompressobj(-15)
    try:
        data = decoder.decompress(stream, size + 1)
    except zlib.error as error:
        raise WireError(f"mask section's Huffman stream is broken: {error}") from error
    if len(data) != size or not decoder.eof or decoder.unused_data or decoder.unconsumed_tail:
        raise WireError(f"mask section's Huffman stream holds {len(data)} bytes or more, not exactly {size}")
    return np.frombuffer(data, np.uint8)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
