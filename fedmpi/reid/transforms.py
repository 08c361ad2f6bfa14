"""From decoded images to network input: resize, augmentation drawn up front, ImageNet normalisation.

The test transform is Resize, ToTensor, Normalise; the training one is Resize, RandomHorizontalFlip, Pad + RandomCrop,
ToTensor, Normalise, RandomErasing (FedCAPR's recipe, METHOD section 2). All that is random about a batch is an
`AugmentPlan`, drawn from a generator before any image is read: the result does not depend on who reads it, nor when.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedmpi.config import AugmentConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet statistics of RGB in 0..1, as torchvision's weights expect."""
ERASE_AREA, ERASE_RATIO, ERASE_TRIES = (0.02, 0.33), (0.3, 3.3), 10
"""Random Erasing as in torchvision's defaults: share of the area, height / width (log-uniform), attempts to fit."""

# float32[3, 256]: the normalised value of each byte, computed in the order of torchvision (x / 255, - mean, / std)
_TABLE = (
    (np.arange(256, dtype=np.float32) / np.float32(255))[None, :] - np.array(MEAN, dtype=np.float32)[:, None]
) / np.array(STD, dtype=np.float32)[:, None]


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return uint8[H, W, 3] as uint8[height, width, 3]: bilinear, antialiased.

    Pillow does it, so the result is that of torchvision's Resize on PIL images.

    An image that has the size already is returned as it is.
    """
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def normalise(images: NDArray[np.uint8]) -> torch.Tensor:
    """Return uint8[b, H, W, 3] as float32[b, 3, H, W], (x / 255 - mean) / std per channel."""
    output = np.empty((images.shape[0], 3, *images.shape[1:3]), dtype=np.float32)
    for channel in range(3):
        np.take(_TABLE[channel], images[..., channel], out=output[:, channel])
    return torch.from_numpy(output)


@dataclass(frozen=True)
class AugmentPlan:
    """What happens to each image of a batch of b.

    Attributes
    ----------
    flip
        bool[b]; mirror left and right.
    crop
        int64[b, 2]; top and left of the crop in the image padded with `pad` black pixels on all sides, 0..2 pad.
    erase
        int64[b, 4]; top, left, height, width of the erased rectangle; height 0 = nothing erased.
    pad
        Width of the padding in pixels.
    """

    flip: NDArray[np.bool_]
    crop: NDArray[np.int64]
    erase: NDArray[np.int64]
    pad: int

    def __len__(self) -> int:
        return len(self.flip)

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, height: int, width: int, augment: AugmentConfig) -> AugmentPlan:
        """Draw the plan of a batch of `count` images of height x width.

        The number of draws depends on `count` alone, so that a switch of `augment` does not shift the others.
        """
        flip = rng.random(count) < augment.flip
        crop = np.floor(rng.random((count, 2)) * (2 * augment.pad + 1)).astype(np.int64)
        erase = _draw_boxes(rng, count, height, width)
        erase[rng.random(count) >= augment.erase] = 0
        return cls(flip, crop, erase, int(augment.pad))


def _draw_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.int64]:
    """Return int64[count, 4] rectangles (top, left, height, width); zeros where no attempt fits (Zhong et al. 2020)."""
    area = height * width * rng.uniform(*ERASE_AREA, size=(count, ERASE_TRIES))
    ratio = np.exp(rng.uniform(math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1]), size=(count, ERASE_TRIES)))
    high, wide = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (high < height) & (wide < width)
    first = np.argmax(fits, axis=1)
    rows = np.arange(count)
    high, wide = high[rows, first], wide[rows, first]
    top, left = (np.floor(rng.random(count) * (side + 1)) for side in (height - high, width - wide))
    boxes = np.stack([top, left, high, wide], axis=1).astype(np.int64)
    boxes[~fits.any(axis=1)] = 0
    return boxes


def plain_batch(images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """Return resized images, each uint8[H, W, 3], as float32[b, 3, H, W] by the test transform."""
    return normalise(np.stack(images))


def augmented_batch(images: Sequence[NDArray[np.uint8]], plan: AugmentPlan, rows: Sequence[int]) -> torch.Tensor:
    """Return resized images as float32[b, 3, H, W], augmented; image i follows row ``rows[i]`` of `plan`.

    The padding is black before normalisation; an erased rectangle is 0 after it (the mean colour of ImageNet), as
    torchvision's RandomErasing does by default.
    """
    canvas = np.zeros((len(images), *images[0].shape), dtype=np.uint8)
    for target, image, row in zip(canvas, images, rows, strict=True):
        _place(target, image[:, ::-1] if plan.flip[row] else image, plan.crop[row] - plan.pad)
    batch = normalise(canvas)
    for target, row in zip(batch, rows, strict=True):
        top, left, high, wide = plan.erase[row].tolist()
        if high:
            target[:, top : top + high, left : left + wide] = 0
    return batch


def _place(target: NDArray[np.uint8], image: NDArray[np.uint8], shift: NDArray[np.int64]) -> None:
    """Copy the part of `image` that a window moved by `shift` (down, right) shows; the rest of `target` stays black."""
    height, width, _ = image.shape
    dy, dx = shift.tolist()
    target[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)] = image[
        max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)
    ]
