"""Scores at Market-1501's size, 3 368 x 19 732 x 2048, beside a full-matrix NumPy argsort.

    OMP_NUM_THREADS=1 python tests/benchmarks/retrieval.py fedmpi
    OMP_NUM_THREADS=1 python tests/benchmarks/retrieval.py numpy

One way per process, so that the peak memory is its own; it is given above that of the features.
"""

import resource
import sys
import time

import numpy as np
import torch

from fedmpi.reid.evaluation import score


def by_argsort(q: np.ndarray, qp: np.ndarray, qc: np.ndarray, g: np.ndarray, gp: np.ndarray, gc: np.ndarray) -> float:
    """Return mAP from the order of the whole matrix."""
    order = np.argsort(-(q @ g.T), axis=1)
    precisions = []
    for row, pid, camid in zip(order, qp, qc, strict=True):
        keep = ~((gp[row] == -1) | ((gp[row] == pid) & (gc[row] == camid)))
        places = np.flatnonzero(gp[row][keep] == pid)
        if len(places):
            precisions.append(np.mean((np.arange(len(places)) + 1) / (places + 1)))
    return float(np.mean(precisions))


def main() -> None:
    """Measure and print."""
    way = sys.argv[1] if len(sys.argv) > 1 else "fedmpi"
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    gp = rng.permutation(np.concatenate([np.repeat(np.arange(1, 751), 17), np.full(3163, 0), np.full(3819, -1)]))
    gc, qp, qc = rng.integers(1, 7, len(gp)), rng.integers(1, 751, 3368), rng.integers(1, 7, 3368)
    centres = rng.standard_normal((751, 2048), dtype=np.float32)
    q, g = (3 * rng.standard_normal((len(p), 2048), dtype=np.float32) for p in (qp, gp))
    for rows, pids in ((q, qp), (g, gp)):
        rows += centres[np.maximum(pids, 0)]  # noqa: PLW2901 - in place
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: PLW2901
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = time.process_time()
    if way == "numpy":
        result = by_argsort(q, qp, qc, g, gp, gc)
    else:
        result = score(q, qp, qc, gallery_features=g, gallery_pids=gp, gallery_camids=gc).mean_ap
    cpu = time.process_time() - cpu
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    print(f"{way}: {len(q)} x {len(g)}, {cpu:.1f} CPU s, {peak:.0f} MB more, mAP {result:.6f}")


if __name__ == "__main__":
    main()
