from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.comm.segments import MAX_SEGMENT_BYTES, SHORTEST, UNDER_WAY, Cuts, cut, segments


@given(st.integers(0, 5000), st.integers(1, 10_000))
def test_ranges_cover_everything_once_and_start_at_word_borders(size, segment_bytes):
    ranges = segments(size, segment_bytes)
    assert [i for lo, hi in ranges for i in range(lo, hi)] == list(range(size))
    assert all(lo % 64 == 0 and hi > lo for lo, hi in ranges)
    assert all(4 * (hi - lo) <= max(256, segment_bytes) for lo, hi in ranges)
    assert len(ranges) <= 1 or 4 * (ranges[0][1] + 64) > segment_bytes  # no smaller than need be


def test_no_message_is_larger_than_mpi_counts():
    assert max(hi - lo for lo, hi in segments(40_000_000, 10**10)) * 4 == MAX_SEGMENT_BYTES
    assert 4 * Cuts(10**9, 1).step(10**9) == MAX_SEGMENT_BYTES


@pytest.mark.parametrize(("size", "expected"), [(0, ()), (1, ((0, 1),)), (64, ((0, 64),)), (65, ((0, 64), (64, 65)))])
def test_edges(size, expected):
    assert segments(size, 256) == expected
    assert Cuts(size, 8).ranges(size) == cut(0, size, 10**9)  # too small to be cut


@given(st.integers(1, 300_000), st.integers(1, 70), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_all_clients_ranges_start_where_the_finest_ones_do(size, clients, densities):
    cuts = Cuts(size, clients)
    steps = [cuts.step(int(density * size)) for density in densities]
    assert all(step % min(steps) == 0 and min(steps) % 64 == 0 for step in steps)
    for density in densities:
        nnz = int(density * size)
        ranges = cuts.ranges(nnz)
        assert (ranges[0][0], ranges[-1][1], len(ranges)) == (0, size, cuts.count(nnz))
        assert all(a[1] == b[0] for a, b in pairwise(ranges))


@given(st.integers(8, 64), st.sampled_from([1, 0.7, 0.5, 0.3, 0.1, 0.02]))
def test_what_is_under_way_fills_a_quarter_of_a_dense_vector_whatever_number_and_density(clients, density):
    size = 24_000_000
    nnz = int(size * density)
    bytes_under_way = UNDER_WAY * clients * 4 * density * Cuts(size, clients).step(nnz)
    assert 0.49 / 4 <= bytes_under_way / (4 * size) <= 1 / 4


def test_parts_of_a_small_model_are_not_smaller_than_worth_a_message():
    assert Cuts(100_000, 64).ranges(100_000) == cut(0, 100_000, SHORTEST // 4)


def test_a_fixed_size_is_for_all_alike():
    cuts = Cuts(1000, 8, 1024)
    assert [cuts.step(nnz) for nnz in (0, 1, 500, 1000)] == [256] * 4
    assert cuts.count(3) == 4
