import numpy as np
import pytest

from fedmpi.reid.images import ImageList, MemoryPixels
from fedmpi.reid.pooling import pool


def images(pids, camids, grey: int) -> ImageList:
    pixels = np.full((len(pids), 4, 2, 3), grey, np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(pids))
    names = tuple(f"{grey}/{i}" for i in range(len(pids)))
    return ImageList(np.array(pids, np.int64), np.array(camids, np.int64), MemoryPixels(pixels, names))


@pytest.fixture
def lists():
    return images([5, 5, 9], [1, 2, 1], 10), images([5, 7], [1, 1], 20), images([0, 3, 3], [4, 2, 2], 30)


def test_order_and_pixels_are_those_of_the_parts(lists):
    pooled = pool(lists)
    assert len(pooled) == len(pooled.pixels) == 8
    assert [pooled.pixels.name(i) for i in range(8)] == [
        f"{g}/{i}" for g, n in ((10, 3), (20, 2), (30, 3)) for i in range(n)
    ]
    assert [pooled.pixels.read(i)[1, 1, 1] for i in range(8)] == [10] * 3 + [20] * 2 + [30] * 3
    assert [pooled.pixels.read(i)[0, 0, 0] for i in range(8)] == [0, 1, 2, 0, 1, 0, 1, 2]


@pytest.mark.parametrize("name", ["pids", "camids"])
def test_equal_within_a_part_stays_equal_and_parts_have_nothing_in_common(lists, name):
    numbers = getattr(pool(lists), name)
    owners = np.repeat([0, 1, 2], [3, 2, 3])
    original = np.concatenate([getattr(part, name) for part in lists])
    for i in range(8):
        for j in range(8):
            same = owners[i] == owners[j] and original[i] == original[j]
            assert (numbers[i] == numbers[j]) == same


def test_a_choice_of_images(lists):
    chosen = pool(lists).take([7, 0, 3])
    assert [chosen.pixels.name(i) for i in range(3)] == ["30/2", "10/0", "20/0"]
