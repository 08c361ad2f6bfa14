import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.comm.segments import MAX_SEGMENT_BYTES, segments


@given(st.integers(0, 5000), st.integers(1, 10_000))
def test_ranges_cover_everything_once_and_start_at_word_borders(size, segment_bytes):
    ranges = segments(size, segment_bytes)
    assert [i for lo, hi in ranges for i in range(lo, hi)] == list(range(size))
    assert all(lo % 64 == 0 and hi > lo for lo, hi in ranges)
    assert all(4 * (hi - lo) <= max(256, segment_bytes) for lo, hi in ranges)
    assert len(ranges) <= 1 or 4 * (ranges[0][1] + 64) > segment_bytes  # no smaller than need be


def test_no_message_is_larger_than_mpi_counts():
    assert max(hi - lo for lo, hi in segments(40_000_000, 10**10)) * 4 == MAX_SEGMENT_BYTES


@pytest.mark.parametrize(("size", "expected"), [(0, ()), (1, ((0, 1),)), (64, ((0, 64),)), (65, ((0, 64), (64, 65)))])
def test_edges(size, expected):
    assert segments(size, 256) == expected
