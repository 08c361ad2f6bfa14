"""The cost model, worked out by hand."""

import pytest

from fedmpi.comm import Wire
from fedmpi.sparse import ValueCoding

RAW, SELF, DELTA = ValueCoding.RAW_F32, ValueCoding.LOSSLESS, ValueCoding.LOSSLESS_DELTA


@pytest.mark.parametrize(
    ("wire", "with_reference", "without"),
    [
        (Wire(), RAW, RAW),
        (Wire("raw", "bytes"), RAW, RAW),
        (Wire("lossless"), DELTA, SELF),
        (Wire("auto", "bytes"), DELTA, SELF),
        (Wire("bf16"), ValueCoding.BF16, ValueCoding.BF16),
        (Wire("fp16"), ValueCoding.FP16, ValueCoding.FP16),
        (Wire("auto"), RAW, RAW),  # nothing leaves the process
        # 1 MB raw takes 10 ms; coded 7.2 ms (8.5 ms by itself) and 1 ms + 1 ms of coding
        (Wire("auto", "time", 100e6, 1e9, 1e9), DELTA, RAW),
        (Wire("auto", "time", 100e6, 2e9, 2e9), DELTA, SELF),
        (Wire("auto", "time", 1e9, 1e9, 1e9), RAW, RAW),
        (Wire("auto", "time", 1e9, 8e9, 8e9), DELTA, RAW),
    ],
)
def test_the_choice(wire, with_reference, without):
    assert wire.coding(reference=True) == with_reference
    assert wire.coding(reference=False) == without
