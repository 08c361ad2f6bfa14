"""The proxy memory: one running centre per (camera, cluster) pair.

After Wang et al., "Camera-aware Proxies for Unsupervised Person Re-Identification" (AAAI 2021; code CAP-master) and
FedCAPR: clusters mix cameras, and splitting them by camera separates identity from camera style.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

IntArray = npt.NDArray[np.int64]


@dataclass(eq=False)
class ProxyMemory:
    """Centres of the proxies of one client, rebuilt at every clustering.

    Attributes
    ----------
    centres
        float32[P, D], rows L2-normalised; changed in place by `update`.
    camera, cluster
        int64[P] on the device of ``centres``: the pair that each proxy stands for, in ascending order of
        (camera, cluster).
    proxies
        int64[n] NumPy array: the proxy of every image, -1 for an outlier of the clustering.
    momentum
        Share of the old centre that survives an update, in [0, 1].
    """

    centres: torch.Tensor
    camera: torch.Tensor
    cluster: torch.Tensor
    proxies: IntArray
    momentum: float

    def __len__(self) -> int:
        """Return the number of proxies P."""
        return len(self.centres)

    @classmethod
    def build(cls, features: torch.Tensor, labels: IntArray, camids: IntArray, *, momentum: float = 0.2) -> Self:
        """Make the proxies of a clustering.

        The means are summed on the CPU in image order, so they do not depend on the device's scatter order.

        Parameters
        ----------
        features
            float32[n, D], rows L2-normalised; their device becomes that of the memory.
        labels
            int64[n] clusters, -1 for outliers (in a supervised run: the identities).
        camids
            int64[n] cameras.

        Raises
        ------
        ValueError
            When the lengths differ.
        """
        if not len(features) == len(labels) == len(camids):
            message = f"{len(features)} features, {len(labels)} labels and {len(camids)} cameras: lengths differ"
            raise ValueError(message)
        kept = np.flatnonzero(labels >= 0)
        pairs, inverse = np.unique(np.stack([camids[kept], labels[kept]], axis=1), axis=0, return_inverse=True)
        proxies = np.full(len(labels), -1, dtype=np.int64)
        proxies[kept] = inverse.reshape(-1)
        camera, cluster = (torch.tensor(pairs[:, i], dtype=torch.int64, device=features.device) for i in (0, 1))
        return cls(_means(features, proxies, len(pairs)), camera, cluster, proxies, momentum)

    @torch.no_grad()
    def update(self, features: torch.Tensor, proxy_ids: torch.Tensor) -> None:
        """Move the centres of a batch: m <- momentum m + (1 - momentum) f, then L2-normalise, one sample at a time.

        Call it after ``backward()``. CAP and FedCAPR update inside the backward pass of the similarity product, camera
        by camera and within a camera in batch order. That gives the same gradients and the same centres as this call:
        there the gradient of the features is taken with the centres before they move, every camera moves only its own
        centres, and the inter-camera loss reads a snapshot of the start of the batch. Here no snapshot is needed,
        since nothing moves before the backward pass is over.

        Parameters
        ----------
        features
            float[B, D], rows L2-normalised; detached here.
        proxy_ids
            int64[B], each in [0, P). Samples of one proxy are applied in batch order.
        """
        turn = _occurrence(proxy_ids)
        for number in range(int(turn.max()) + 1 if len(turn) else 0):
            rows = turn == number  # at most one sample of each proxy
            ids = proxy_ids[rows]
            moved = self.momentum * self.centres[ids] + (1.0 - self.momentum) * features[rows].to(self.centres.dtype)
            self.centres[ids] = functional.normalize(moved, dim=1)


def _means(features: torch.Tensor, proxies: IntArray, count: int) -> torch.Tensor:
    kept = np.flatnonzero(proxies >= 0)
    rows = features.detach().cpu()[torch.from_numpy(kept)]
    total = torch.zeros((count, features.shape[1]), dtype=rows.dtype)
    total.index_add_(0, torch.from_numpy(proxies[kept]), rows)
    return functional.normalize(total, dim=1).to(features.device)  # the mean's length does not matter


def _occurrence(ids: torch.Tensor) -> torch.Tensor:
    """Return int64[B]: how many earlier entries have the same id."""
    same = ids[:, None] == ids[None, :]
    return same.tril(diagonal=-1).sum(dim=1)
