from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi.errors import DataError, Stopped
from fedmpi.reid.features import Viewing, embed
from fedmpi.reid.images import ClientData, MemoryPixels
from fedmpi.reid.testing import evaluate
from tests.federated.scenes import VIEWING, Directions, numbered


class Mean(nn.Module):
    """Embeds an image as its three channel means; says what it was called with."""

    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        self.modes.add((self.training, torch.is_grad_enabled()))
        return images.mean(dim=(2, 3))


def expected(index) -> np.ndarray:
    """The channel means of `numbered` images after ImageNet normalisation."""
    red = np.asarray(index, float) / 255
    zero = np.zeros_like(red)
    return np.stack([(red - 0.485) / 0.229, (zero - 0.456) / 0.224, (zero - 0.406) / 0.225], axis=1)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_rows_follow_the_index(batch_size):
    model = Mean()
    index = np.array([9, 3, 3, 0, 7, 11])
    z, read = embed(model, numbered(12), index, replace(VIEWING, batch_size=batch_size))
    np.testing.assert_allclose(z.numpy(), expected(index), rtol=1e-5)
    np.testing.assert_array_equal(read, index)
    assert max(model.batches) <= batch_size
    assert sum(model.batches) == 6


def test_may_be_interrupted_before_every_batch():
    model, looks = Mean(), []

    def interrupt():
        looks.append(len(model.batches))
        if len(looks) == 3:
            raise Stopped("now")

    with pytest.raises(Stopped, match="now"):
        embed(model, numbered(12), np.arange(12), replace(VIEWING, interrupt=interrupt))
    assert looks == [0, 1, 2]
    assert model.batches == [4, 4]  # three batches of at most five would be twelve


def test_flip_adds_the_mirror_image():
    class Left(Mean):
        """Sees the left half only."""

        def forward(self, images):
            return super().forward(images[..., : images.shape[3] // 2])

    rng = np.random.default_rng(0)
    pixels = MemoryPixels(rng.integers(0, 256, (3, 8, 4, 3), dtype=np.uint8), ("a", "b", "c"))
    images = replace(numbered(3), pixels=pixels)
    mirrored = replace(images, pixels=MemoryPixels(pixels.array[:, :, ::-1].copy(), pixels.names), resized={})
    viewing = replace(VIEWING, height=8, width=4)
    plain, turned, both = (
        embed(Left(), i, np.arange(3), viewing, flip=f)[0]
        for i, f in ((images, False), (mirrored, False), (images, True))
    )
    assert not torch.allclose(plain, turned)
    torch.testing.assert_close(both, plain + turned)


def test_in_evaluation_mode_without_gradients():
    model = Mean().train()
    z, _ = embed(model, numbered(4), np.arange(4), VIEWING)
    assert model.modes == {(False, False)}
    assert not z.requires_grad


def test_unreadable_images_have_no_row(monkeypatch):
    images = numbered(8)
    original = MemoryPixels.read

    def read(pixels, i):
        if i in {2, 6}:
            raise DataError("broken")
        return original(pixels, i)

    monkeypatch.setattr(MemoryPixels, "read", read)
    z, got = embed(Mean(), images, np.array([6, 5, 2, 1]), VIEWING)
    assert got.tolist() == [5, 1]
    np.testing.assert_allclose(z.numpy(), expected([5, 1]), rtol=1e-5)
    assert images.bad == {2, 6}


def test_nothing_to_embed():
    z, read = embed(Mean(), numbered(3), np.empty(0, np.int64), VIEWING)
    assert z.shape == (0, 3)
    assert read.shape == (0,)


def test_nothing_readable(monkeypatch):
    def read(pixels, i):
        raise DataError("broken")

    monkeypatch.setattr(MemoryPixels, "read", read)
    z, read_positions = embed(Mean(), numbered(3), np.arange(3), VIEWING)
    assert z.shape == (0, 3)
    assert len(read_positions) == 0


@pytest.mark.parametrize(("precision", "inside"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_mixed_precision_only_where_asked_and_float32_comes_out(precision, inside):
    seen = []

    class Linear(nn.Linear):
        dim = 4

        def forward(self, images):
            z = super().forward(images.flatten(1))
            seen.append(z.dtype)
            return z

    z, _ = embed(Linear(24, 4), numbered(3), np.arange(3), replace(VIEWING, precision=precision))
    assert seen == [inside]
    assert z.dtype == torch.float32


def test_viewing_is_float32_by_default():
    assert Viewing(4, 2, 5, 0, torch.device("cpu")).precision is torch.float32


class TestEvaluate:
    def test_by_hand(self):
        images = numbered(6, pids=[1, 2, 1, 2, 1, -1], camids=[1, 1, 2, 2, 1, 2])
        data = ClientData("x", images.take([0]), images.take([0, 1]), images.take([2, 3, 4, 5]))
        # Query 0 at 0 degrees: 4 is of its own camera and 5 is junk; 3 at 50 comes before the answer 2 at 60.
        # Query 1 at 90 degrees: 2 at 60 comes before the answer 3 at 50.
        score = evaluate(Directions([0, 90, 60, 50, 0, 1]), data, VIEWING, ranks=(1, 2))
        assert score.mean_ap == pytest.approx(1 / 2)
        assert score.cmc == {1: 0.0, 2: 1.0}

    def test_unreadable_test_images_are_left_out(self, monkeypatch):
        images = numbered(4, pids=[1, 1, 1, 2], camids=[1, 2, 2, 2])
        data = ClientData("x", images.take([0]), images.take([0]), images.take([1, 2, 3]))
        original = MemoryPixels.read

        def read(pixels, i):
            if pixels.names[i].endswith("/1.png"):
                raise DataError("broken")
            return original(pixels, i)

        monkeypatch.setattr(MemoryPixels, "read", read)
        score = evaluate(Directions([0, 90, 20, 10]), data, VIEWING, ranks=(1,))
        assert score.mean_ap == pytest.approx(1 / 2)
        assert data.gallery.bad == {0}
