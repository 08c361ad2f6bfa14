"""Lossless coding of float32 values in NumPy; the compiled one (native/values.h) makes the same bytes.

docs/wire-format.md specifies the records. Both functions work on one segment; their temporary memory is about 60 bytes
a value.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["SLACK", "Record", "decode_values", "encode_values"]

Values = NDArray[np.float32]
Bits = NDArray[np.uint32]
Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]


class Record(IntEnum):
    """The first byte of a record."""

    RAW = 0
    SELF = 1
    DELTA = 2
    SAME = 3


LONGEST = 24  # a quotient of so many zeros is an escape: 32 bits at the end of the record
SELF_WIDTH = 24  # sign and mantissa; what is above is the exponent's distance from the top one
MAX_WIDTH = 31
CLASSES = 33  # bit lengths of a residual
EXPONENTS = 256
SLACK = 32
"""Bytes that the compiled encoder wants in ``out`` beyond the longest record."""

# Twice the bits that a residual with 0, 1, 2 ... bits above its low ones takes beside those.
_TWICE_EXTRA = np.array([0, 2, 5, 11, 23, 76, *[2 * (LONGEST + 32)] * (CLASSES - 6)], np.int64)
_EXTRA = np.array([[_TWICE_EXTRA[max(c - k, 0)] for k in range(MAX_WIDTH + 1)] for c in range(CLASSES)])


class _Plan(NamedTuple):
    """Residuals, how many low bits each has, and what the record says before them."""

    residuals: Bits
    widths: Index
    table: bytes


def encode_values(values: Values, reference: Values | None, out: Bytes) -> int:
    """Write the record of float32[n] values to ``out`` and return its length, at most 1 + 4 n."""
    bits, n = values.view(np.uint32), values.size
    record = bytes([Record.RAW]) + values.tobytes()
    if n and reference is not None:
        record = _encode_delta(bits, reference.view(np.uint32), len(record)) or record
    if n and (record[0] == Record.RAW or len(record) > 4 * n - n // 2):  # the reference helps little or not at all
        record = _written(_plan_self(bits), len(record)) or record
    out[: len(record)] = np.frombuffer(record, np.uint8)
    return len(record)


def decode_values(record: Bytes, reference: Values | None, out: Values) -> None:
    """Write the values of a record to ``out``, float32[n]; ValueError says what is wrong with it."""
    _require(record.size > 0, "it ends too early or too late")
    mode, bits = int(record[0]), out.view(np.uint32)
    old = None if reference is None else reference.view(np.uint32)
    if mode == Record.RAW:
        _require(record.size == 1 + 4 * out.size, "it ends too early or too late")
        out.view(np.uint8)[:] = record[1:]
    elif mode == Record.SELF:
        _require(record.size > 1, "it ends too early or too late")
        widths = np.full(out.size, SELF_WIDTH, np.int64)
        rotated = _top(int(record[1])) - _read(record[2:], widths)
        bits[:] = rotated >> np.uint32(1) | rotated << np.uint32(31)
    elif mode == Record.DELTA and old is not None:
        widths, used = _read_widths(record[1:], old)
        bits[:] = _add_residuals(_read(record[1 + used :], widths), old)
    elif mode == Record.SAME and old is not None:
        _require(record.size == 1, "it ends too early or too late")
        bits[:] = old
    else:
        raise ValueError("the mode is unknown or needs a reference")


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - the condition of an assertion
    if not condition:
        raise ValueError(message)


def _ordered(bits: Bits) -> Bits:
    """Return integers that grow with the value: the bits of a float, whatever they are, one to one."""
    return bits ^ np.where(bits >> 31 != 0, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def _unordered(order: Bits) -> Bits:
    return order ^ np.where(order >> 31 != 0, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))


def _residuals(bits: Bits, old: Bits) -> Bits:
    """Return differences folded to 0, -1, 1, -2, ... = 0, 1, 2, 3, ..."""
    difference = _ordered(bits) - _ordered(old)
    return difference << np.uint32(1) ^ np.where(difference >> 31 != 0, np.uint32(0xFFFFFFFF), np.uint32(0))


def _add_residuals(residuals: Bits, old: Bits) -> Bits:
    difference = residuals >> np.uint32(1) ^ np.where(residuals & 1 != 0, np.uint32(0xFFFFFFFF), np.uint32(0))
    return _unordered(_ordered(old) + difference)


def _exponents(bits: Bits) -> Index:
    return (bits >> np.uint32(23) & np.uint32(255)).astype(np.int64)


def _top(exponent: int) -> np.uint32:
    return np.uint32(exponent << 24 | 0xFFFFFF)


def _bit_lengths(residuals: Bits) -> Index:
    """Return 0 for 0, else the place of the highest one, from 1."""
    return np.frexp(residuals.astype(np.float64))[1].astype(np.int64)


def _encode_delta(bits: Bits, old: Bits, limit: int) -> bytes:
    residuals = _residuals(bits, old)
    if not residuals.any():
        return bytes([Record.SAME])
    exponents = _exponents(old)
    classes = np.bincount(exponents * CLASSES + _bit_lengths(residuals), minlength=EXPONENTS * CLASSES)
    classes = classes.reshape(EXPONENTS, CLASSES)
    counts = classes.sum(axis=1)
    cost = classes @ _EXTRA + 2 * counts[:, None] * np.arange(MAX_WIDTH + 1)
    widths = cost.argmin(axis=1)
    table = bytes([Record.DELTA, *widths[counts > 0].tolist()])
    return _written(_Plan(residuals, widths[exponents], table), limit)


def _plan_self(bits: Bits) -> _Plan:
    held = np.bincount(_exponents(bits), minlength=EXPONENTS)
    steps = np.arange(EXPONENTS)[:, None] - np.arange(EXPONENTS)  # [top, exponent]
    cost = np.where((steps < 0) | (steps >= LONGEST), LONGEST + 32, steps) @ held
    top = int(cost.argmin())
    rotated = bits << np.uint32(1) | bits >> np.uint32(31)
    return _Plan(_top(top) - rotated, np.full(bits.size, SELF_WIDTH, np.int64), bytes([Record.SELF, top]))


def _written(plan: _Plan, limit: int) -> bytes:
    """Return the record, or nothing when it would have ``limit`` bytes or more."""
    quotients = plan.residuals.astype(np.int64) >> plan.widths
    escaped = quotients >= LONGEST
    ends = np.cumsum(np.minimum(quotients, LONGEST) + 1)
    low_bytes = (int(plan.widths.sum()) + 7) // 8
    size = len(plan.table) + low_bytes + (int(ends[-1]) + 7) // 8 + 4 * int(escaped.sum())
    if size >= limit:
        return b""
    marks = np.zeros(int(ends[-1]), np.bool_)
    marks[ends - 1] = True
    low = plan.residuals & ((np.uint64(1) << plan.widths.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)
    parts = (plan.table, _packed(low, plan.widths, low_bytes), np.packbits(marks, bitorder="little").tobytes())
    return b"".join((*parts, quotients[escaped].astype("<u4").tobytes()))


def _packed(low: Bits, widths: Index, size: int) -> bytes:
    """Return a stream of numbers of ``widths`` bits each, lowest bit first."""
    at = np.cumsum(widths) - widths
    shifted = low.astype(np.uint64) << (at % 32).astype(np.uint64)
    words = np.zeros(size // 4 + 3, np.uint64)
    np.add.at(words, at // 32, shifted & np.uint64(0xFFFFFFFF))  # bits do not overlap, so a sum joins them
    np.add.at(words, at // 32 + 1, shifted >> np.uint64(32))
    return words.astype("<u4").tobytes()[:size]


def _read_widths(record: Bytes, old: Bits) -> tuple[Index, int]:
    exponents = _exponents(old)
    held = np.flatnonzero(np.bincount(exponents, minlength=EXPONENTS))
    _require(record.size >= held.size, "it ends too early or too late")
    table = np.zeros(EXPONENTS, np.int64)
    table[held] = record[: held.size]
    _require(bool((table <= MAX_WIDTH).all()), "a width is above 31")
    return table[exponents], held.size


def _read(data: Bytes, widths: Index) -> Bits:
    """Return the residuals of a record from its low bits on."""
    ends = np.cumsum(widths)
    low_bits = int(ends[-1]) if widths.size else 0
    low_bytes = (low_bits + 7) // 8
    _require(low_bytes <= data.size, "it ends too early or too late")
    quotients, used = _read_quotients(data[low_bytes:], widths.size)
    escapes = data[low_bytes + used :]
    escaped = quotients == LONGEST
    _require(escapes.size == 4 * int(escaped.sum()), "it ends too early or too late")
    _require(low_bits % 8 == 0 or int(data[low_bytes - 1]) >> low_bits % 8 == 0, "padding bits are set")
    quotients[escaped] = escapes.copy().view("<u4")
    _require(bool((quotients[escaped] >= LONGEST).all()), "an escaped quotient is out of range")
    high = quotients << widths
    _require(not (high >> 32).any(), "a quotient is too long")
    return high.astype(np.uint32) | _read_low(data[:low_bytes], ends - widths, widths)


def _read_quotients(data: Bytes, count: int) -> tuple[Index, int]:
    """Return ``count`` unary numbers and the bytes that they take."""
    bits = np.unpackbits(data, bitorder="little")
    ones = np.flatnonzero(bits)[:count]
    _require(ones.size == count, "it ends too early or too late")
    quotients = np.diff(ones, prepend=-1) - 1
    _require(bool((quotients <= LONGEST).all()), "a quotient is too long")
    stop = int(ones[-1]) + 1 if count else 0
    used = (stop + 7) // 8
    _require(not bits[stop : 8 * used].any(), "padding bits are set")
    return quotients.astype(np.int64), used


def _read_low(data: Bytes, at: Index, widths: Index) -> Bits:
    words = np.zeros(data.size // 4 + 3, "<u4")
    words.view(np.uint8)[: data.size] = data
    pair = words[at // 32].astype(np.uint64) | words[at // 32 + 1].astype(np.uint64) << np.uint64(32)
    kept = (np.uint64(1) << widths.astype(np.uint64)) - np.uint64(1)
    return (pair >> (at % 32).astype(np.uint64) & kept).astype(np.uint32)
