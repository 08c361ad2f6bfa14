"""Value codings: round trips of every bit pattern, the same bytes everywhere, sizes, and every refusal."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.errors import WireError
from fedmpi.sparse import Mask, ValueCoding, decode_range, decode_values, encode_range, encode_values, values_bound
from fedmpi.sparse import kernels_portable as portable
from fedmpi.sparse.values import rounded
from fedmpi.sparse.values_portable import SLACK
from tests.sparse.support import any_float32, bits_equal, reference_values

RAW, SELF, DELTA, SAME = range(4)
LOSSLESS = [ValueCoding.LOSSLESS, ValueCoding.LOSSLESS_DELTA]


def old_and_new(rng, size, kind):
    """A reference and values: unrelated bits, trained weights after small or large steps, equal, or constant."""
    old = any_float32(rng, size) if kind in ("bits", "sparse") else (0.02 * rng.standard_normal(size)).astype("f4")
    if kind == "bits":
        return old, any_float32(rng, size)
    if kind == "sparse":
        return old, np.where(rng.random(size) < 0.1, any_float32(rng, size), old)
    if kind == "constant":
        return old, np.full(size, old[0] if size else 0, np.float32)
    step = {"equal": 0.0, "tiny": 1e-9, "small": 1e-4, "large": 1.0}[kind]
    return old, (old + step * rng.standard_normal(size)).astype(np.float32)


@st.composite
def exchanges(draw):
    size = draw(st.sampled_from([0, 1, 2, 7, 63, 64, 65]) | st.integers(0, 400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["bits", "sparse", "constant", "equal", "tiny", "small", "large"]))
    return rng, *old_and_new(rng, size, kind)


def every_implementation():
    """The portable functions, and the compiled ones where they are built."""
    try:
        from fedmpi.sparse import _native
    except ImportError:
        return [portable]
    return [portable, _native]


@given(exchanges(), st.sampled_from(LOSSLESS), st.booleans())
def test_lossless_values_come_back_bit_by_bit_and_are_never_longer(exchange, coding, known):
    _, old, new = exchange
    reference = old if known else None
    data = encode_values(new, coding, reference)
    assert data.size <= values_bound(coding, new.size) == (4 * new.size + 1 if new.size else 0)
    assert bits_equal(decode_values(data, coding, new.size, reference), new)


@given(exchanges(), st.booleans())
def test_all_implementations_write_the_same_bytes(exchange, known):
    _, old, new = exchange
    reference = old if known else None
    records = []
    for module in every_implementation():
        out = np.empty(4 * new.size + 1 + SLACK, np.uint8)
        records.append(bytes(out[: module.encode_values(new, reference, out)]))
    assert len(set(records)) == 1


@given(exchanges(), st.booleans())
def test_a_decoder_written_from_the_text_agrees(exchange, known):
    _, old, new = exchange
    if not new.size:
        return
    data = bytes(encode_values(new, ValueCoding.LOSSLESS_DELTA, old if known else None))
    words = reference_values(data, old.view(np.uint32).tolist() if known else None, new.size)
    assert words == new.view(np.uint32).tolist()


@given(exchanges(), st.booleans())
def test_damaged_records_are_refused_or_decoded_alike(exchange, known):
    rng, old, new = exchange
    reference = old if known else None
    data = encode_values(new, ValueCoding.LOSSLESS_DELTA, reference).copy()
    if not data.size:
        return
    for _ in range(int(rng.integers(1, 4))):
        data[rng.integers(data.size)] ^= 1 << rng.integers(8)
    data = data[: rng.integers(data.size + 1)] if rng.random() < 0.3 else data
    outcomes = set()
    for module in every_implementation():
        out = np.zeros(new.size, np.float32)
        try:
            module.decode_values(data, reference, out)
            outcomes.add(out.tobytes())
        except ValueError:
            outcomes.add("refused")
    assert len(outcomes) == 1


def test_sizes_after_training_steps():
    rng = np.random.default_rng(3)
    old = (0.02 * rng.standard_normal(100_000)).astype(np.float32)
    for step, ratio in ((0.0, 0.0001), (1e-6, 0.46), (1e-5, 0.56), (1e-4, 0.66), (1e-3, 0.76)):
        new = (old + step * rng.standard_normal(old.size)).astype(np.float32)
        assert encode_values(new, ValueCoding.LOSSLESS_DELTA, old).size <= 4 * old.size * ratio
        assert encode_values(new, ValueCoding.LOSSLESS).size <= 4 * old.size * 0.86


def test_the_size_is_near_the_entropy_of_the_differences():
    """Residuals uniform in 0 ... 2**12 - 1 have 12 bits each; a Rice code of the best width adds at most 1.5."""
    rng = np.random.default_rng(4)
    old = np.full(50_000, 0x3F800000, np.uint32)
    new = old + rng.integers(-(2**11), 2**11, old.size).astype(np.int64).astype(np.uint32)
    data = encode_values(new.view(np.float32), ValueCoding.LOSSLESS_DELTA, old.view(np.float32))
    assert 12.0 <= 8 * data.size / old.size <= 13.5


@pytest.mark.parametrize("known", [False, True])
def test_incompressible_values_travel_raw_behind_one_byte(known):
    new, old = np.random.default_rng(5).integers(0, 2**32, (2, 1000), dtype=np.uint32).view(np.float32)
    data = encode_values(new, ValueCoding.LOSSLESS_DELTA, old if known else None)
    assert data[0] == RAW
    assert bytes(data[1:]) == new.tobytes()


def record(coding, values, old=None):
    data = encode_values(np.asarray(values, np.float32), coding, None if old is None else np.asarray(old, np.float32))
    return data.copy()


OLD = np.linspace(0.5, 0.9, 100).astype(np.float32)
NEW = OLD + np.float32(1e-5)
DELTA_RECORD = record(ValueCoding.LOSSLESS_DELTA, NEW, OLD)


def changed(at, value):
    data = DELTA_RECORD.copy()
    data[at] = value
    return data


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(
    ("data", "coding", "reference", "message"),
    [
        (DELTA_RECORD, ValueCoding.LOSSLESS_DELTA, None, "mode is unknown or needs a reference"),
        (DELTA_RECORD, ValueCoding.LOSSLESS, OLD, "LOSSLESS segment of 100 values is damaged: it starts with 02"),
        (changed(0, 4), ValueCoding.LOSSLESS_DELTA, OLD, "mode is unknown"),
        (changed(1, 32), ValueCoding.LOSSLESS_DELTA, OLD, "a width is above 31"),
        (DELTA_RECORD[:-1], ValueCoding.LOSSLESS_DELTA, OLD, "ends too early or too late"),
        (DELTA_RECORD[:1], ValueCoding.LOSSLESS_DELTA, OLD, "ends too early or too late"),
        (DELTA_RECORD[:0], ValueCoding.LOSSLESS_DELTA, OLD, "damaged: it starts with"),
        (np.append(DELTA_RECORD, np.uint8(0)), ValueCoding.LOSSLESS_DELTA, OLD, "ends too early or too late"),
        (np.zeros(400, np.uint8), ValueCoding.LOSSLESS, None, "ends too early or too late"),
        (np.zeros(399, np.uint8), ValueCoding.RAW_F32, None, "100 RAW_F32 values are 400 bytes, got 399"),
        (np.zeros(400, np.uint8), ValueCoding.BF16, None, "100 BF16 values are 200 bytes, got 400"),
        (DELTA_RECORD, ValueCoding.LOSSLESS_DELTA, OLD[1:], "100 values and a reference of 99"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(data, coding, reference, message):
    with pytest.raises(WireError, match=message):
        decode_values(data, coding, 100, reference)


@pytest.mark.usefixtures("implementation")
def test_escapes_out_of_range_are_refused():
    """One value far from its reference is an escape: its quotient stands in the last four bytes."""
    old = np.full(200, 1.0, np.float32)
    new = old + np.float32(1e-6)
    new[77] = -1e30
    data = encode_values(new, ValueCoding.LOSSLESS_DELTA, old).copy()
    assert data[0] == DELTA
    for quotient, valid in ((struct.unpack("<I", data[-4:])[0], True), (23, False), (0, False), (2**32 - 1, False)):
        data[-4:] = np.frombuffer(struct.pack("<I", quotient), np.uint8)
        if valid:
            assert bits_equal(decode_values(data, ValueCoding.LOSSLESS_DELTA, 200, old), new)
        else:
            with pytest.raises(WireError, match=r"escaped quotient is out of range|quotient is too long"):
                decode_values(data, ValueCoding.LOSSLESS_DELTA, 200, old)


@given(st.integers(0, 2**32 - 1), st.sampled_from([ValueCoding.BF16, ValueCoding.FP16]))
def test_rounding_is_to_nearest_even_and_stays_within_the_stated_error(seed, coding):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(64) * 10.0 ** rng.integers(-12, 4, 64)).astype(np.float32)
    seen = decode_values(encode_values(values, coding), coding, 64)
    assert bits_equal(seen, rounded(values, coding))
    assert bits_equal(rounded(seen, coding), seen)
    relative, smallest = (2.0**-8, 2.0**-134) if coding == ValueCoding.BF16 else (2.0**-11, 2.0**-25)
    exact, got = values.astype(np.float64), seen.astype(np.float64)
    assert (np.abs(got - exact) <= np.maximum(relative * np.abs(exact), smallest)).all()


def test_bf16_ties_go_to_even_and_nan_stays_nan():
    patterns = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0x80000000], np.uint32)
    seen = rounded(patterns.view(np.float32), ValueCoding.BF16).view(np.uint32) >> 16
    assert [hex(x) for x in seen[[0, 1, 2, 5, 6]]] == ["0x3f80", "0x3f82", "0x3f81", "0x7f80", "0x8000"]
    assert np.isnan((seen[[3, 4]] << 16).view(np.float32)).all()


def test_fp16_refuses_what_it_cannot_hold():
    assert rounded(np.array([65504, -np.inf], np.float32), ValueCoding.FP16).tolist() == [65504, -np.inf]
    with pytest.raises(WireError, match=r"70000 is too large for fp16: set wire.values to bf16 or lossless"):
        encode_values(np.array([1, 70000], np.float32), ValueCoding.FP16)


@given(exchanges(), st.sampled_from(list(ValueCoding)), st.integers(0, 2))
def test_ranges_of_a_masked_vector(exchange, coding, density):
    rng, old, new = exchange
    new = new if coding in (ValueCoding.RAW_F32, *LOSSLESS) else np.clip(np.nan_to_num(new), -100, 100)
    mask = Mask.from_bool(rng.random(new.size) < density / 2)
    for lo in range(0, new.size, 128):
        hi = min(lo + 128, new.size)
        kept = mask.to_bool(lo, hi)
        data = encode_range(new, mask, lo, hi, coding, old)
        elsewhere = np.where(mask.to_bool(), old, np.float32(7))  # what the receiver has where it need not agree
        assert bits_equal(decode_range(data, mask, lo, hi, coding, elsewhere), rounded(new[lo:hi][kept], coding))
