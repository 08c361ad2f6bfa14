"""Clients whose images are plain colours, so that what a model sees of them can be worked out by hand."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fedmpi.reid.features import Viewing
from fedmpi.reid.images import ClientData, ImageList, MemoryPixels

VIEWING = Viewing(height=4, width=2, batch_size=5, workers=0, device=torch.device("cpu"))


class Directions(nn.Module):
    """Embeds image ``i`` of a list as row ``i`` of a table: the red value of an image is its number."""

    dim = 2

    def __init__(self, angles: Sequence[float]) -> None:
        super().__init__()
        self.table = torch.tensor([[np.cos(a), np.sin(a)] for a in np.radians(angles)], dtype=torch.float32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32[B, 2]."""
        red = images[:, 0, 0, 0] * 0.229 + 0.485
        return self.table[(255 * red).round().long()]


def numbered(count: int, pids: list[int] | None = None, camids: list[int] | None = None) -> ImageList:
    """Return a list of ``count`` images that carry their number."""
    pixels = np.zeros((count, 4, 2, 3), np.uint8)
    pixels[..., 0] = np.arange(count)[:, None, None]
    return ImageList(
        np.array(pids if pids is not None else range(count), np.int64),
        np.array(camids if camids is not None else [1] * count, np.int64),
        MemoryPixels(pixels, tuple(f"client/train/{i}.png" for i in range(count))),
    )


def client_data(train: ImageList) -> ClientData:
    """Return a client without test images."""
    nothing = numbered(0)
    return ClientData("someone", train, nothing, nothing)
