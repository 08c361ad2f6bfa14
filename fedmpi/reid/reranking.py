"""k-reciprocal re-ranking (Zhong et al., CVPR 2017), block by block.

The distance of query i and gallery j is (1 - weight) J(i, j) + weight d(i, j) with the Jaccard distance J of
k-reciprocal sets over queries and gallery together, and d the squared Euclidean distance of normalised
features divided by its largest value in row i. As in the authors' code, an image's list has k1 others besides itself,
half lists round(k1 / 2) others, and V holds exp(-d).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from fedmpi.reid.clustering import expand_queries, minimum_blocks, nearest, reciprocal_weights


def reranked_blocks(
    query: torch.Tensor, gallery: torch.Tensor, *, k1: int, k2: int, weight: float
) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
    """Yield (start, stop, float32[stop - start, G]) distances of queries to the gallery, top to bottom.

    Parameters
    ----------
    query, gallery
        float32[Q, D] and float32[G, D], rows L2-normalised, on one device.
    k1, k2
        Positive; lists longer than there are images are cut.
    weight
        Share of the original distance, in [0, 1].
    """
    rows, q = torch.cat([query, gallery]), len(query)
    if q == 0 or len(gallery) == 0:
        return
    farthest = np.empty(len(rows), np.float32)
    lists = nearest(rows, max(k1 + 1, k2), farthest)
    scale = (1 / np.maximum(farthest, 1e-30)).astype(np.float32)  # all images equal: every distance is 0 anyway
    weights = reciprocal_weights(rows, lists[:, : k1 + 1], lists[:, : round(k1 / 2) + 1], scale)
    for start, stop, jaccard in minimum_blocks(expand_queries(weights, lists[:, :k2]), q):
        plain = (2 - 2 * query[start:stop] @ gallery.T).clamp_(min=0).cpu().numpy() * scale[start:stop, None]
        yield start, stop, ((1 - weight) * jaccard[:, q:] + weight * plain).astype(np.float32)
