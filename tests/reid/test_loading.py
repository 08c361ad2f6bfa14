"""Batches: same result whoever reads, unreadable images left out and counted."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fedmpi.errors import DataError
from fedmpi.reid.images import FilePixels, ImageList, MemoryPixels
from fedmpi.reid.loading import batches, check_bad_share
from fedmpi.reid.transforms import AugmentPlan, augmented_batch, plain_batch, resize
from tests.reid.test_transforms import _augment, _images

BROKEN = 5


def _memory(array):
    labels = np.arange(len(array), dtype=np.int64)
    return ImageList(labels, labels % 2, MemoryPixels(array, tuple(f"m/{i}" for i in range(len(array)))))


@pytest.fixture
def files(tmp_path):
    """Twelve PNG files of 40x20, of which number 5 is cut short; and their pixels."""
    array = _images(12, 40, 20)
    paths = []
    for number, image in enumerate(array):
        path = tmp_path / f"{number:04d}.png"
        Image.fromarray(image).save(path)
        paths.append(str(path))
    whole = (tmp_path / "0005.png").read_bytes()
    (tmp_path / "0005.png").write_bytes(whole[: len(whole) // 2])
    labels = np.arange(12, dtype=np.int64)
    return ImageList(labels, labels % 2, FilePixels(tuple(paths), "a/query", 8.0)), array


INDICES = [np.array([0, 3, BROKEN, 3]), np.array([11, 1]), np.array([BROKEN]), np.array([7, 8, 9])]


def _collect(images, **options):
    return list(batches(images, INDICES, 32, 16, **options))


def _plans():
    rng = np.random.default_rng(0)
    return [AugmentPlan.draw(rng, len(index), 32, 16, _augment()) for index in INDICES]


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_plain_batches_without_the_broken_image(files, cache_bytes):
    images, array = files
    for _ in range(2):
        result = _collect(images, cache_bytes=cache_bytes)
        for (tensor, good), index in zip(result, INDICES, strict=True):
            wanted = [i for i in index if i != BROKEN]
            assert good.dtype == np.int64
            assert good.tolist() == wanted
            assert tensor.shape == (len(wanted), 3, 32, 16)
            assert tensor.dtype == torch.float32
            if wanted:
                assert torch.equal(tensor, plain_batch([resize(array[i], 32, 16) for i in wanted]))
    assert images.bad == {BROKEN}


def test_each_readable_image_keeps_its_own_augmentation(files):
    images, array = files
    plans = _plans()
    for (tensor, _), index, plan in zip(_collect(images, plans=plans), INDICES, plans, strict=True):
        rows = [row for row, i in enumerate(index) if i != BROKEN]
        if rows:
            small = [resize(array[index[row]], 32, 16) for row in rows]
            assert torch.equal(tensor, augmented_batch(small, plan, rows))


def test_workers_change_nothing(files):
    images, _ = files
    alone = _collect(images, plans=_plans())
    images.bad.clear()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    shared = _collect(images, plans=_plans(), workers=2, cache_bytes=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert images.bad == {BROKEN}
    for (left, good), (right, also) in zip(alone, shared, strict=True):
        assert torch.equal(left, right)
        np.testing.assert_array_equal(good, also)


MAIN = """
import sys
import numpy as np
from fedmpi.reid.images import FilePixels, ImageList
from fedmpi.reid.loading import batches
if __name__ != "__main__":
    sys.exit("a worker ran the main program, where a rank would start MPI")
labels = np.zeros(2, dtype=np.int64)
images = ImageList(labels, labels, FilePixels(tuple(sys.argv[1:]), "a/train", 8.0))
print([good.tolist() for _, good in batches(images, [np.array([1]), np.array([0])], 8, 8, workers=1, cache_bytes=0)])
"""


def test_workers_do_not_run_the_main_program(files, tmp_path):
    program = tmp_path / "main.py"
    program.write_text(MAIN)
    command = [sys.executable, str(program), *files[0].pixels.paths[:2]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("[[1], [0]]\n", 0), done.stderr


class _Counting(FilePixels):
    reads: list[int] = []  # noqa: RUF012 - shared on purpose, reset by the test

    def read(self, index):
        self.reads.append(index)
        return super().read(index)


@pytest.mark.parametrize(("cache_bytes", "times"), [(12 * 32 * 16 * 3, 1), (12 * 32 * 16 * 3 - 1, 3)])
def test_small_lists_are_decoded_once(files, cache_bytes, times):
    source = files[0].pixels
    images = ImageList(files[0].pids, files[0].camids, _Counting(source.paths, source.label, source.max_megapixels))
    _Counting.reads.clear()
    for _ in range(3):
        list(batches(images, [np.array([0, 1, 2]), np.array([BROKEN, 4])], 32, 16, cache_bytes=cache_bytes))
    assert sorted(_Counting.reads) == sorted([0, 1, 2, 4] * times + [BROKEN])  # a bad image is not tried again


def test_memory_needs_no_cache_and_no_workers():
    array = _images(6, 32, 16)
    images = _memory(array)
    ((tensor, good),) = batches(images, [np.array([5, 0])], 32, 16, workers=4)
    assert torch.equal(tensor, plain_batch([array[5], array[0]]))
    assert good.tolist() == [5, 0]
    assert images.resized == {}


def test_two_sizes_do_not_mix(files):
    images, array = files
    for size in ((32, 16), (16, 16), (32, 16)):
        ((tensor, _),) = batches(images, [np.array([2])], *size)
        assert torch.equal(tensor, plain_batch([resize(array[2], *size)]))


@pytest.mark.parametrize("workers", [0, 2])
def test_no_batches(files, workers):
    assert list(batches(files[0], [], 32, 16, workers=workers, cache_bytes=0)) == []


def test_one_plan_per_batch(files):
    with pytest.raises(ValueError, match="2 plans for 4 batches"):
        _collect(files[0], plans=_plans()[:2])


def test_bad_share(files):
    images, _ = files
    check_bad_share(images, 0.0)
    _collect(images)
    check_bad_share(images, 1 / 12)
    with pytest.raises(
        DataError,
        match=r"^1 of 12 images cannot be read.*=0\.08 .*a/query image 6 \(fedmpi data verify names the files\)$",
    ):
        check_bad_share(images, 0.08)


def test_workers_outlive_what_tells_a_whole_job_to_stop():
    program = (
        "import os, signal\n"
        "from fedmpi.reid.loading import _leave_signals_to_the_rank\n"
        "_leave_signals_to_the_rank(0)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0
