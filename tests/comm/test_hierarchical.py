"""One merge per node first, under real mpirun, on nodes that are pretended; and who leads whom."""

from pathlib import Path

import numpy as np
import pytest

from fedmpi.comm.nodes import Group, HoldersShare, leaders
from fedmpi.comm.segments import Cuts
from fedmpi.sparse import Mask
from tests import mpi

SCRIPT = Path(__file__).with_name("hierarchy.py")
SIZE = 300


@pytest.mark.mpi
@mpi.needs_mpirun
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_mean_the_bytes_and_the_accidents(ranks):
    job = mpi.succeed(ranks, [SCRIPT])
    assert [line.split()[0] for line in job.out.splitlines() if line.startswith("d")] == ["digest", "done"], str(job)


@pytest.mark.parametrize(("hosts", "nodes", "expected"), [
    ((1, 2, 3, 4), (0, 0, 0, 0, 0), (0, 0, 0, 0)),  # all on the server's node
    ((1, 2, 3, 4), (0, 0, 1, 1, 1), (0, 2, 2, 2)),
    ((1, 2, 3, 4), (5, 9, 9, 7, 7), (1, 1, 3, 3)),
    ((1, 2, 3, 4), (0, 1, 1, 1, 2), (1, 1, 1, 0)),  # the last one is alone
    ((1, 2, 1, 2), (0, 1, 2), (1, 2, 1, 2)),  # ranks of two clients each
    ((1, 2, 1), (0, 1, 2), (1, 0, 1)),
    ((1, 2, 3, 1, 2, 3), (0, 1, 0, 1), (1, 0, 1, 1, 0, 1)),  # nodes that ranks lie on in turn
    ((0, 0), (0,), (0, 0)),
])  # fmt: skip
def test_leaders(hosts, nodes, expected):
    assert leaders(hosts, nodes) == expected


def drawn(clients: int, seed: int = 0) -> tuple[dict[int, np.ndarray], np.ndarray, dict[int, np.ndarray]]:
    """Return what clients keep, float32 weights, and values at all entries."""
    rng = np.random.default_rng(seed)
    kept = {c: rng.random(SIZE) < rng.random() for c in range(clients)}
    dense = {c: rng.standard_normal(SIZE).astype(np.float32) for c in range(clients)}
    return kept, rng.random(clients).astype(np.float32), dense


class TestGroup:
    def group(self, kept, weights, merged=None) -> Group:
        masks = {c: Mask.from_bool(k) for c, k in kept.items()}
        merged = list(kept) if merged is None else merged
        return Group(merged, weights[merged], masks)

    def test_the_mean_counts_pruned_entries_as_zero_and_is_sent_where_anybody_keeps(self):
        kept, weights, dense = drawn(9)
        group = self.group(kept, weights)
        union = np.any(list(kept.values()), axis=0)
        assert (group.mask.to_bool() == union).all()
        out = np.empty(int(union[64:192].sum()), np.float32)
        group.mean({c: dense[c][64:192][kept[c][64:192]] for c in kept}, 64, 192, out)
        total = sum(np.float64(weights[c]) * dense[c] * kept[c] for c in kept) / weights.sum(dtype=np.float64)
        np.testing.assert_allclose(out, total[64:192][union[64:192]], rtol=0, atol=2e-6)
        assert group.weight == weights.sum(dtype=np.float64)

    def test_who_is_not_merged_adds_nothing(self):
        kept, weights, _ = drawn(3)
        kept[2][:] = True
        group = self.group(kept, weights, merged=[0, 1])
        assert (group.mask.to_bool() == kept[0] | kept[1]).all()
        assert self.group(kept, weights, merged=[]).mask.count() == 0

    def test_values_of_one_client_are_not_rounded(self):
        kept, weights, dense = drawn(2)
        group = self.group(kept, weights, merged=[1])
        values = {c: dense[c][kept[c]] for c in kept}
        out = np.empty_like(values[1])
        group.mean(values, 0, SIZE, out)
        assert out.tobytes() == values[1].tobytes()

    @pytest.mark.parametrize("densities", [(1.0, 0.01), (0.02, 0.001), (0.5, 0.5, 0.5)])
    def test_no_range_crosses_the_border_of_a_part(self, densities):
        size = 1 << 22
        masks = {c: Mask.from_bool(np.arange(size) < d * size) for c, d in enumerate(densities)}
        cuts = Cuts(size, 8)
        ranges = Group([1], np.ones(1, np.float32), masks).ranges(cuts)
        assert (ranges[0][0], ranges[-1][1]) == (0, size)
        for mask in masks.values():
            borders = {lo for lo, _ in cuts.ranges(mask.count())}
            assert borders <= {lo for lo, _ in ranges}


class TestHoldersShare:
    def test_is_the_holders_part_of_the_weight(self):
        kept, weights, _ = drawn(70)
        kept[3][:64] = True
        share = HoldersShare([Mask.from_bool(k) for k in kept.values()], weights)
        expected = sum(np.float64(weights[c]) * kept[c] for c in kept) / weights.sum(dtype=np.float64)
        np.testing.assert_allclose(share.of(64, SIZE), expected[64:], rtol=70 * 2.0**-22)
        np.testing.assert_allclose(share.of(0, 128), expected[:128], rtol=70 * 2.0**-22)

    def test_is_exactly_one_and_zero_at_the_ends(self):
        _, weights, _ = drawn(50)
        kept = np.zeros(SIZE, bool)
        kept[::2] = True
        share = HoldersShare([Mask.from_bool(kept)] * 50, weights).of(0, SIZE)
        assert (share == kept).all()
