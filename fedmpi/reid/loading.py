"""Batches of images as tensors, read by this process or by worker processes, with the same result."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fedmpi.errors import DataError
from fedmpi.reid.images import MemoryPixels
from fedmpi.reid.transforms import augmented_batch, plain_batch, resize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from fedmpi.reid.images import ImageList, Pixels
    from fedmpi.reid.transforms import AugmentPlan

CACHE_BYTES = 64 * 2**20
"""Lists that fit into this many bytes after resizing are decoded once and kept."""

Batch = tuple[torch.Tensor, "NDArray[np.int64]"]


def batches(
    images: ImageList,
    indices: Sequence[NDArray[np.int64]],
    height: int,
    width: int,
    *,
    plans: Sequence[AugmentPlan] | None = None,
    workers: int = 0,
    cache_bytes: int = CACHE_BYTES,
    pin: bool = False,
    interrupt: Callable[[], None] = lambda: None,
) -> Iterator[Batch]:
    """Yield (float32[b, 3, height, width], int64[b] positions in `images`) for each entry of `indices`.

    Unreadable images are left out of their batch and added to ``images.bad``. There is one result per entry, empty
    (b = 0) when nothing of it is readable.
    The result is the same for any number of workers and whether or not images were cached.

    Parameters
    ----------
    images
        The list to read from.
    indices
        Positions per batch.
    plans
        One `AugmentPlan` per batch for training; None for the test transform.
    workers
        Processes that decode. They are used for files too many to be cached; 0 = this process.
    cache_bytes
        Lists of at most this many bytes (n x height x width x 3) are decoded once and kept in ``images.resized``.
    pin
        Put batches into pinned memory, from which copies to a GPU run beside its work.
    interrupt
        Called before every batch is read and after the last one was used; it may raise to end the work.
    """
    if plans is not None and len(plans) != len(indices):
        message = f"{len(plans)} plans for {len(indices)} batches"
        raise ValueError(message)
    if not indices:
        return
    job = _Job(images.pixels, list(indices), height, width, None if plans is None else list(plans))
    small = len(images) * height * width * 3 <= cache_bytes
    if small or workers == 0 or isinstance(images.pixels, MemoryPixels):
        if small and not isinstance(images.pixels, MemoryPixels):
            job.cache = images.resized.setdefault((height, width), {})
        job.known_bad = images.bad
        results: Iterator[_Result] = map(job.__getitem__, range(len(indices)))
    else:
        job.known_bad = frozenset(images.bad)
        with _main_hidden():
            results = iter(_loader(job, workers, pin=pin))
    interrupt()
    for tensor, good, bad in results:
        images.bad.update(bad)
        yield (tensor.pin_memory() if pin and not tensor.is_pinned() else tensor), good
        interrupt()


_Result = tuple[torch.Tensor, "NDArray[np.int64]", list[int]]


class _Job(Dataset[_Result]):
    """All batches of one pass; item k is batch k. Picklable: it travels to the workers."""

    def __init__(
        self,
        pixels: Pixels,
        indices: list[NDArray[np.int64]],
        height: int,
        width: int,
        plans: list[AugmentPlan] | None,
    ) -> None:
        self.pixels, self.indices, self.height, self.width, self.plans = pixels, indices, height, width, plans
        self.cache: dict[int, NDArray[np.uint8]] | None = None
        self.known_bad: set[int] | frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, batch: int) -> _Result:
        """Return (tensor, positions read, positions found unreadable)."""
        found: dict[int, NDArray[np.uint8] | None] = {}
        for index in map(int, self.indices[batch]):
            if index not in found:
                found[index] = self._read(index)
        bad = [index for index, image in found.items() if image is None]
        rows = [row for row, index in enumerate(self.indices[batch]) if found[int(index)] is not None]
        good = np.asarray(self.indices[batch], dtype=np.int64)[rows]
        chosen = [image for index in good if (image := found[int(index)]) is not None]
        if not chosen:
            return torch.empty(0, 3, self.height, self.width), good, bad
        if self.plans is None:
            return plain_batch(chosen), good, bad
        return augmented_batch(chosen, self.plans[batch], rows), good, bad

    def _read(self, index: int) -> NDArray[np.uint8] | None:
        if index in self.known_bad:
            return None
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        try:
            image = resize(self.pixels.read(index), self.height, self.width)
        except DataError:
            return None
        if self.cache is not None:
            self.cache[index] = image
        return image


def _loader(job: _Job, workers: int, *, pin: bool) -> DataLoader[_Result]:
    """Return a loader whose workers come from a fork server: a process of an MPI rank must not be forked itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return DataLoader(
        job,
        batch_size=None,
        num_workers=min(workers, len(job)),
        pin_memory=pin,
        multiprocessing_context=context,
        generator=torch.Generator().manual_seed(0),  # otherwise the loader draws from the global generator
        worker_init_fn=_leave_signals_to_the_rank,
    )


def _leave_signals_to_the_rank(_: int) -> None:
    """Go on working when a whole job is told to stop: the rank decides when, and a dead worker would be an error."""
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Hide the main program while workers start: they would run it again, and it may import mpi4py and so start MPI."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def check_bad_share(images: ImageList, max_share: float) -> None:
    """Raise DataError when more than the share `max_share` (0 to 1) of `images` has turned out unreadable."""
    if not images.bad or len(images.bad) <= max_share * len(images):
        return
    first = images.pixels.name(min(images.bad))
    raise DataError(
        f"{len(images.bad)} of {len(images)} images cannot be read, more than data.max_bad_share={max_share:g} allows; "
        f"the first is {first} (fedmpi data verify names the files)"
    )
