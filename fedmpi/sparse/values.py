"""How values travel: raw float32, lossless, or rounded to sixteen bits; one segment at a time.

Lossless records are bit-exact for every bit pattern. They code the integer difference to a reference that both ends
hold, or the exponent alone where there is none; where neither pays, one byte and the raw values. docs/wire-format.md
specifies them.
"""

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import WireError
from fedmpi.sparse.backend import implementation
from fedmpi.sparse.header import ValueCoding
from fedmpi.sparse.kernels import pack
from fedmpi.sparse.mask import Mask
from fedmpi.sparse.values_portable import SLACK, Record

__all__ = [
    "LOSSLESS", "ROUNDED", "decode_range", "decode_values", "encode_kept", "encode_range", "encode_values", "kept",
    "rounded", "values_bound",
]  # fmt: skip

Values = NDArray[np.float32]
Bytes = NDArray[np.uint8]

LOSSLESS = (ValueCoding.LOSSLESS, ValueCoding.LOSSLESS_DELTA)
ROUNDED = (ValueCoding.BF16, ValueCoding.FP16)
_NAN_BF16 = 0x7FC0


def values_bound(coding: ValueCoding, count: int) -> int:
    """Return the most bytes that a segment of ``count`` values can have; only lossless ones may have fewer."""
    if coding in ROUNDED:
        return 2 * count
    return 4 * count + (1 if coding in LOSSLESS and count else 0)


def encode_values(values: Values, coding: ValueCoding, reference: Values | None = None) -> Bytes:
    """Return the bytes of a segment, uint8[at most `values_bound`]; raw ones are a view of ``values``.

    Parameters
    ----------
    values : float32[n]
        Contiguous. For BF16 and FP16 already `rounded`, or they are here.
    reference : float32[n] or None
        What the receiver holds at the same places; used by LOSSLESS_DELTA only.

    Raises
    ------
    WireError
        Values and reference differ in number, or a value is too large for FP16.
    """
    if coding == ValueCoding.RAW_F32 or not values.size:
        return values.view(np.uint8)
    if coding in ROUNDED:
        return _narrow(values, coding).view(np.uint8)
    out = np.empty(4 * values.size + 1 + SLACK, np.uint8)
    given = _checked(reference, values.size) if coding == ValueCoding.LOSSLESS_DELTA else None
    return out[: implementation().encode_values(values, given, out)]


def decode_values(data: Bytes, coding: ValueCoding, count: int, reference: Values | None = None) -> Values:
    """Return the ``count`` values of a segment, float32; a view of ``data`` where they are raw and aligned.

    Raises
    ------
    WireError
        ``data`` is not a segment of so many values in this coding, or needs a reference and there is none.
    """
    if coding in LOSSLESS and count:
        return _decode_record(data, coding, count, reference)
    if data.size != values_bound(coding, count):
        raise WireError(f"{count} {coding.name} values are {values_bound(coding, count)} bytes, got {data.size}")
    if coding in ROUNDED:
        return _widen(data.view(np.uint16), coding)
    return data.view(np.float32)


def encode_range(
    theta: Values, mask: Mask, lo: int, hi: int, coding: ValueCoding, reference: Values | None = None
) -> Bytes:
    """Return the segment of the kept entries ``lo <= i < hi`` of ``theta``, float32[N]; so long is ``reference``.

    A raw range that keeps all its entries is a view of ``theta``: dense models travel without being copied.
    """
    return encode_kept(kept(theta, mask, lo, hi), mask, lo, hi, coding, reference)


def kept(theta: Values, mask: Mask, lo: int, hi: int) -> Values:
    """Return the kept entries ``lo <= i < hi`` of ``theta``, float32[count]; all of them are a view."""
    whole = mask.count(lo, hi) == hi - lo
    return theta[lo:hi] if whole else pack(theta, mask, lo, hi)


def encode_kept(
    values: Values, mask: Mask, lo: int, hi: int, coding: ValueCoding, reference: Values | None = None
) -> Bytes:
    """Return the segment of ``values``, float32[count], which are the kept entries ``lo <= i < hi``."""
    return encode_values(values, coding, _old(mask, lo, hi, coding, reference))


def decode_range(
    data: Bytes, mask: Mask, lo: int, hi: int, coding: ValueCoding, reference: Values | None = None
) -> Values:
    """Return the kept entries ``lo <= i < hi``, float32[count], of their segment; ``reference`` is float32[N] or None.

    Raises
    ------
    WireError
        As `decode_values`.
    """
    return decode_values(data, coding, mask.count(lo, hi), _old(mask, lo, hi, coding, reference))


def _old(mask: Mask, lo: int, hi: int, coding: ValueCoding, reference: Values | None) -> Values | None:
    return None if reference is None or coding != ValueCoding.LOSSLESS_DELTA else pack(reference, mask, lo, hi)


def rounded(values: Values, coding: ValueCoding) -> Values:
    """Return what arrives of ``values`` (float32[n]): themselves, unless BF16 or FP16 rounds them to nearest even.

    The relative error is at most 2**-8 (BF16) or 2**-11 (FP16) in the format's normal range, which starts at 1.2e-38
    and 6.2e-5; below, the absolute error is at most 2**-134 or 2**-25.

    Raises
    ------
    WireError
        A finite value is too large for FP16 (above 65504).
    """
    return _widen(_narrow(values, coding), coding) if coding in ROUNDED else values


def _decode_record(data: Bytes, coding: ValueCoding, count: int, reference: Values | None) -> Values:
    if not data.size or (coding == ValueCoding.LOSSLESS and data[0] not in {Record.RAW, Record.SELF}):
        raise WireError(f"a {coding.name} segment of {count} values is damaged: it starts with {bytes(data[:1]).hex()}")
    values = np.empty(count, np.float32)
    try:
        implementation().decode_values(data, _checked(reference, count), values)
    except ValueError as error:
        raise WireError(f"a {coding.name} segment of {count} values in {data.size} bytes is damaged: {error}") from None
    return values


def _checked(reference: Values | None, count: int) -> Values | None:
    if reference is not None and reference.size != count:
        raise WireError(f"{count} values and a reference of {reference.size}")
    return reference


def _narrow(values: Values, coding: ValueCoding) -> NDArray[np.uint16]:
    """Return sixteen-bit patterns, rounded to nearest even; NaN stays NaN."""
    if coding == ValueCoding.FP16:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            half = values.astype(np.float16)
        if (lost := np.isinf(half) & np.isfinite(values)).any():
            raise WireError(f"the value {values[lost][0]:g} is too large for fp16: set wire.values to bf16 or lossless")
        return half.view(np.uint16)
    bits = values.view(np.uint32)
    up = (bits >> np.uint32(16) & np.uint32(1)) + np.uint32(0x7FFF)
    high = (bits + up >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), (bits >> np.uint32(16)).astype(np.uint16) | np.uint16(_NAN_BF16), high)


def _widen(bits: NDArray[np.uint16], coding: ValueCoding) -> Values:
    if coding == ValueCoding.FP16:
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
