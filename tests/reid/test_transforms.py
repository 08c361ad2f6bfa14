"""Transforms against torchvision and against a slow chain of elementary operations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv
from torchvision.transforms import functional as tvf

from fedmpi.reid.transforms import AugmentPlan, augmented_batch, normalise, plain_batch, resize

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _images(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def _augment(flip=0.5, pad=3, erase=0.5):
    return SimpleNamespace(flip=flip, pad=pad, erase=erase)


def test_normalise_is_torchvisions_to_the_bit():
    chain = tv.Compose([tv.ToTensor(), tv.Normalize(MEAN, STD)])
    images = _images(3, 20, 11)
    expected = torch.stack([chain(Image.fromarray(image)) for image in images])
    assert torch.equal(normalise(images), expected)


@pytest.mark.parametrize("size", [(64, 32), (20, 50), (200, 90)])
def test_resize_is_torchvisions_on_pil_images(size):
    image = _images(1, 101, 47)[0]
    expected = np.asarray(tv.Resize(size)(Image.fromarray(image)))
    np.testing.assert_array_equal(resize(image, *size), expected)


def test_resize_leaves_an_image_of_the_right_size_alone():
    image = _images(1, 64, 32)[0]
    assert resize(image, 64, 32) is image


def _slow(image, plan, row):
    """The recipe step by step on one image, with torchvision's own operations."""
    picture = Image.fromarray(image)
    if plan.flip[row]:
        picture = tvf.hflip(picture)
    picture = tvf.crop(tvf.pad(picture, plan.pad), *plan.crop[row].tolist(), image.shape[0], image.shape[1])
    tensor = tvf.normalize(tvf.to_tensor(picture), MEAN, STD)
    top, left, height, width = plan.erase[row].tolist()
    return tvf.erase(tensor, top, left, height, width, torch.zeros(())) if height else tensor


@pytest.mark.parametrize("pad", [0, 3, 10])
def test_augmentation_is_the_recipe(pad):
    images = _images(40, 32, 16, seed=1)
    plan = AugmentPlan.draw(np.random.default_rng(2), 40, 32, 16, _augment(pad=pad))
    expected = torch.stack([_slow(image, plan, row) for row, image in enumerate(images)])
    assert torch.equal(augmented_batch(list(images), plan, range(40)), expected)
    assert 0 < plan.flip.sum() < 40
    assert 0 < (plan.erase[:, 2] > 0).sum() < 40


def test_rows_choose_the_plan_of_an_image():
    images = _images(6, 32, 16, seed=3)
    plan = AugmentPlan.draw(np.random.default_rng(4), 6, 32, 16, _augment())
    whole = augmented_batch(list(images), plan, range(6))
    rows = [4, 0, 5]
    assert torch.equal(augmented_batch([images[row] for row in rows], plan, rows), whole[rows])


def test_nothing_switched_on_is_the_test_transform():
    images = _images(8, 32, 16, seed=5)
    plan = AugmentPlan.draw(np.random.default_rng(6), 8, 32, 16, _augment(flip=0.0, pad=0, erase=0.0))
    assert torch.equal(augmented_batch(list(images), plan, range(8)), plain_batch(list(images)))


def test_switching_one_part_off_leaves_the_others():
    full, bare = (
        AugmentPlan.draw(np.random.default_rng(7), 50, 64, 32, augment) for augment in (_augment(), _augment(erase=0.0))
    )
    np.testing.assert_array_equal(full.flip, bare.flip)
    np.testing.assert_array_equal(full.crop, bare.crop)
    assert not bare.erase.any()
    assert full.erase.any()


def test_offsets_reach_both_ends_evenly():
    plan = AugmentPlan.draw(np.random.default_rng(8), 7000, 64, 32, _augment(pad=3))
    counts = np.stack([np.bincount(plan.crop[:, axis], minlength=7) for axis in (0, 1)])
    assert counts.shape == (2, 7)
    assert (np.abs(counts - 1000) < 150).all()  # five standard deviations
    assert abs(int(plan.flip.sum()) - 3500) < 210


@pytest.mark.parametrize(("height", "width"), [(64, 32), (10, 30)])  # in the second many attempts do not fit
def test_erased_boxes_follow_torchvisions_distribution(height, width):
    count = 4000
    ours = AugmentPlan.draw(np.random.default_rng(9), count, height, width, _augment(erase=1.0)).erase
    top, left, high, wide = ours.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + high <= height).all()
    assert (left + wide <= width).all()
    assert (high < height).all()  # never the full height or width
    assert (wide < width).all()
    torch.manual_seed(0)
    blank = torch.zeros(3, height, width)
    theirs = np.array(
        [tv.RandomErasing.get_params(blank, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(count)], dtype=float
    )
    for mine, other in ((high * wide, theirs[:, 2] * theirs[:, 3]), (high, theirs[:, 2]), (top, theirs[:, 0])):
        error = np.hypot(mine.std(), other.std()) / np.sqrt(count)
        assert abs(mine.mean() - other.mean()) < 5 * error


def test_every_shift_shows_black_at_the_border():
    white = np.full((32, 16, 3), 255, dtype=np.uint8)
    plan = AugmentPlan(np.array([False]), np.array([[6, 0]]), np.zeros((1, 4), dtype=np.int64), pad=3)
    batch = augmented_batch([white], plan, [0])
    black, bright = normalise(np.array([[[[0] * 3, [255] * 3]]], dtype=np.uint8))[0, :, 0].T
    assert torch.equal(batch[0, :, 31, 15], black)  # 3 rows below the image
    assert torch.equal(batch[0, :, 0, 2], black)  # 3 columns left of it
    assert torch.equal(batch[0, :, 28, 3], bright)
