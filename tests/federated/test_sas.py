"""SAS worked by hand: masks that overlap, have nothing in common, or keep nothing (METHOD section 3)."""

import numpy as np
import pytest

from fedmpi.sparse import Mask
from fedmpi.sparse.kernels import merge_range, pack

OLD = np.array([9, 9, 9, 9], np.float32)
FIRST, SECOND = np.array([1, 2, 3, 4], np.float32), np.array([5, 6, 7, 8], np.float32)
WEIGHTS = np.array([0.25, 0.75], np.float32)


@pytest.mark.parametrize(
    ("first", "second", "skipping", "counting"),
    [
        # both keep all: 1/4 a + 3/4 b
        ("1111", "1111", [4, 5, 6, 7], [4, 5, 6, 7]),
        # overlapping in the middle: there the mean, outside the only holder
        ("1110", "0111", [1, 5, 6, 8], [0.25, 5, 6, 6]),
        # nothing in common
        ("1100", "0011", [1, 2, 7, 8], [0.25, 0.5, 5.25, 6]),
        # nobody keeps the last one: the old value, or a mean of zeros
        ("1100", "0110", [1, 5, 7, 9], [0.25, 5, 5.25, 0]),
        # one keeps nothing at all
        ("0000", "1011", [5, 9, 7, 8], [3.75, 0, 5.25, 6]),
        # nobody keeps anything
        ("0000", "0000", [9, 9, 9, 9], [0, 0, 0, 0]),
    ],
)
def test_by_hand(first, second, skipping, counting):
    masks = [Mask.from_bool(np.array([digit == "1" for digit in word])) for word in (first, second)]
    values = [pack(theta, mask, 0, 4) for theta, mask in zip((FIRST, SECOND), masks, strict=True)]
    for skip, expected in ((True, skipping), (False, counting)):
        out = np.empty(4, np.float32)
        merge_range(OLD, values, masks, WEIGHTS, 0, 4, out, skip_pruned=skip)
        np.testing.assert_array_equal(out, np.array(expected, np.float32))
