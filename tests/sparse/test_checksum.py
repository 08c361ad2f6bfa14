"""The checksum against Python integers, wherever the values are cut."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmpi.sparse import Checksum, values_checksum


def by_hand(values):
    raw = values.tobytes() + bytes(4 * (values.size % 2))
    words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    xor = 0
    for word in words:
        xor ^= word
    return xor, sum(words) % 2**64


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.lists(st.integers(0, 100), max_size=4))
def test_any_division_gives_the_same(implementation, raw, cuts):
    values = np.frombuffer(raw[: len(raw) // 4 * 4], np.float32)
    ends = [0, *sorted(min(cut, values.size) for cut in cuts), values.size]
    total = Checksum()
    for lo, hi in pairwise(ends):
        total = total.combine(values_checksum(values[lo:hi], lo))
    assert total == values_checksum(values) == by_hand(values)


@given(st.binary(max_size=400), st.lists(st.integers(0, 100), max_size=4))
def test_that_of_a_tensor_is_the_same(raw, cuts):
    values = np.frombuffer(raw[: len(raw) // 4 * 4], np.float32)
    tensor = torch.from_numpy(values.copy())
    ends = [0, *sorted(min(cut, values.size) for cut in cuts), values.size]
    total = Checksum()
    for lo, hi in pairwise(ends):
        total = total.combine(values_checksum(tensor[lo:hi], lo))
    assert total == values_checksum(tensor) == by_hand(values)


def test_sum_wraps(implementation):
    values = np.full(6, 0xFFFFFFFF, np.uint32).view(np.float32)
    assert values_checksum(values) == (2**64 - 1, (3 * (2**64 - 1)) % 2**64)


@pytest.mark.parametrize("flip", [1 << bit for bit in range(32)])
def test_every_flipped_bit_is_seen(implementation, flip):
    values = np.arange(9, dtype=np.float32)
    expected = values_checksum(values)
    values.view(np.uint32)[5] ^= flip
    assert values_checksum(values) != expected
