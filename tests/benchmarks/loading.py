"""Images per second of fedmpi's loading beside torchvision's ImageFolder and DataLoader, on the same files.

    python tests/benchmarks/loading.py [--images 1024] [--workers 0] [--rounds 3]

Writes JPEG files of Market-1501's size (128x64) to a temporary folder, and reads them in turn by each way, so that all
meet the same load of the machine: resize to 256x128, flip, pad and crop, normalise, erase, batches of 32. Prints the
median over the rounds, in images per second of wall time and of CPU time, and the ratio to torchvision.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from fedmpi.config import load_config
from fedmpi.reid.images import FilePixels, ImageList, Pixels
from fedmpi.reid.loading import batches
from fedmpi.reid.packed import PackedPixels
from fedmpi.reid.transforms import MEAN, STD, AugmentPlan

HEIGHT, WIDTH, BATCH = 256, 128, 32


def write(folder: Path, count: int) -> list[str]:
    """Write smooth pictures with some noise, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        base = Image.fromarray(rng.integers(0, 256, (8, 4, 3), dtype=np.uint8)).resize(
            (64, 128), Image.Resampling.BICUBIC
        )
        noisy = np.clip(np.asarray(base) + rng.normal(0, 6, (128, 64, 3)), 0, 255).astype(np.uint8)
        path = folder / f"{number % 16:04d}" / f"{number % 16:04d}_c1s1_{number:06d}_00.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=90)
        paths.append(str(path))
    return paths


def torchvision_way(folder: Path, workers: int) -> Iterator[int]:
    """Yield the sizes of batches, as a plain training script reads them."""
    recipe = transforms.Compose(
        [
            transforms.Resize((HEIGHT, WIDTH)),
            transforms.RandomHorizontalFlip(),
            transforms.Pad(10),
            transforms.RandomCrop((HEIGHT, WIDTH)),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
            transforms.RandomErasing(0.5),
        ]
    )
    loader = DataLoader(ImageFolder(str(folder), recipe), BATCH, shuffle=True, num_workers=workers)
    for images, _ in loader:
        yield len(images)


def fedmpi_way(pixels: Pixels, workers: int) -> Iterator[int]:
    """Yield the sizes of batches of fedmpi's training; nothing is kept in memory."""
    rng, labels = np.random.default_rng(0), np.zeros(len(pixels), np.int64)
    index = np.array_split(rng.permutation(len(pixels)), -(-len(pixels) // BATCH))
    augment = load_config("fedklpr").local.augment
    plans = [AugmentPlan.draw(rng, len(part), HEIGHT, WIDTH, augment) for part in index]
    images = ImageList(labels, labels, pixels)
    for tensor, _ in batches(images, index, HEIGHT, WIDTH, plans=plans, workers=workers, cache_bytes=0):
        yield len(tensor)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its ended children."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(one)[:2]) for one in who)


def rates(way: Callable[[], Iterator[int]]) -> tuple[float, float]:
    """Return images per second of wall time and of CPU time."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    count = sum(way())
    return count / (time.perf_counter() - wall), count / (cpu_seconds() - cpu)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = FilePixels(tuple(write(folder / "images", options.images)), "benchmark", 8.0)
        packed = PackedPixels(files, folder / "cache", HEIGHT, WIDTH)
        ways: dict[str, Callable[[], Iterator[int]]] = {
            "torchvision": lambda: torchvision_way(folder / "images", options.workers),
            "fedmpi": lambda: fedmpi_way(files, options.workers),
            "fedmpi, data.cache_dir": lambda: fedmpi_way(packed, options.workers),
        }
        sum(ways["fedmpi, data.cache_dir"]())  # fills the cache, and reads all files once
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, read in ways.items():
                found[way].append(rates(read))
        table = {way: np.median(values, axis=0) for way, values in found.items()}
    print(f"{options.images} images, {options.workers} workers, {os.cpu_count()} cores, median of {options.rounds}")
    for way, (wall, cpu) in table.items():
        ratio, lean = table[way] / table["torchvision"]
        print(f"{way:<24}{wall:8.0f} images/s ({ratio:.2f}x){cpu:8.0f} images per CPU second ({lean:.2f}x)")


if __name__ == "__main__":
    main()
