"""Embeddings of whole image lists, in evaluation mode and with the test transform."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmpi.reid.images import ImageList
from fedmpi.reid.loading import batches


@dataclass(frozen=True)
class Viewing:
    """How images become batches: size in pixels, batch size, decoding processes, device and mixed precision.

    ``interrupt`` is called before every batch; it may raise to end the work.
    """

    height: int
    width: int
    batch_size: int
    workers: int
    device: torch.device
    precision: torch.dtype = torch.float32
    interrupt: Callable[[], None] = lambda: None

    @property
    def pin(self) -> bool:
        """Whether batches should lie in pinned memory: they do when they are to go to a GPU."""
        return self.device.type == "cuda"

    def autocast(self) -> torch.autocast:
        """Return the mixed-precision context; a no-op for float32."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32)


@torch.inference_mode()
def embed(
    model: nn.Module, images: ImageList, index: NDArray[np.int64], viewing: Viewing, *, flip: bool = False
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return the un-normalised embeddings of ``images[index]`` and the indices of those that could be read.

    With ``flip`` they are sums of the embedding of the image and of its mirror image.

    Returns
    -------
    z
        ``float32[n, D]`` on the CPU.
    read
        ``int64[n]``, a subsequence of ``index``; unreadable images are added to ``images.bad``.
    """
    model.eval()
    parts = np.array_split(index, max(1, -(-index.size // viewing.batch_size)))
    rows, read = [], []
    loaded = batches(
        images,
        parts,
        viewing.height,
        viewing.width,
        workers=viewing.workers,
        pin=viewing.pin,
        interrupt=viewing.interrupt,
    )
    for pixels, found in loaded:
        with viewing.autocast():
            shown = pixels.to(viewing.device, non_blocking=True)
            z = model(shown).float()
            rows.append((z + model(shown.flip(3)).float() if flip else z).cpu())
        read.append(found)
    if not rows:
        return torch.empty(0, int(model.dim)), np.empty(0, np.int64)  # type: ignore[arg-type]
    return torch.cat(rows), np.concatenate(read)
