"""CPU time and peak memory of the clustering step (features given) for one number of images.

    OMP_NUM_THREADS=2 python tests/benchmarks/clustering.py 12936

Features are drawn around one centre for every 17 images, as in Market-1501; making them is not timed.
"""

import resource
import sys
import time

import numpy as np
import torch

from fedmpi.reid.clustering import cluster


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 12_936
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, count // 17), 2048), dtype=np.float32)
    features = rng.standard_normal((count, 2048), dtype=np.float32)
    features += centres[rng.integers(0, len(centres), count)]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    wall, cpu = time.perf_counter(), time.process_time()
    labels = cluster(features)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    print(f"{count} images: {cpu:.1f} CPU s, {wall:.1f} s, peak {peak:.2f} GB, {labels.max() + 1} clusters")


if __name__ == "__main__":
    main()
