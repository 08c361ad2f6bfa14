"""Pseudo-identities: DBSCAN on the k-reciprocal Jaccard distance between images.

The distance is that of Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding" (CVPR 2017), in
the form that SpCL, cluster-contrast, CAP and FedCAPR use for clustering: no mixing with the original distance, and
Gaussian weights of the squared Euclidean distance of normalised features, 2 - 2 cos.

Nothing of size n x n is held except the result of `jaccard_distance`; `cluster` holds only the pairs within ``eps``.
Ties between distances go to the lower index, so equal input gives equal output. Distances come from a matrix product,
whose last bit may depend on the number of threads; with ties in exact arithmetic that can change a neighbour.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.cluster import DBSCAN
from sklearn.neighbors import sort_graph_by_row_values

from fedmpi.errors import TrainingError

Labels = npt.NDArray[np.int64]
Features = torch.Tensor | npt.NDArray[np.float32]

_BLOCK_ENTRIES = 1 << 20  # of an n-wide block of distances or of expanded pairs: 8 MB as int64


def cluster(
    features: Features,
    *,
    k1: int = 20,
    k2: int = 6,
    eps: float = 0.5,
    min_samples: int = 4,
    interrupt: Callable[[], None] = lambda: None,
) -> Labels:
    """Group images into pseudo-identities.

    Parameters
    ----------
    features
        float32[n, D], rows L2-normalised; a NumPy array or a tensor on any device.
    k1, k2
        Neighbours for the k-reciprocal sets and for the local query expansion, see `jaccard_distance`.
    eps, min_samples
        DBSCAN: largest Jaccard distance between neighbours (inclusive), and neighbours (itself included) of a core.
    interrupt
        Called after every block of distances; it may raise to end the work.

    Returns
    -------
    int64[n] labels, numbered 0, 1, ... by first appearance; -1 marks an outlier.

    Raises
    ------
    TrainingError
        When a feature is not finite: the model has diverged.
    """
    rows = _checked(features, k1, k2)
    if len(rows) == 0:
        return np.empty(0, dtype=np.int64)
    graph = sort_graph_by_row_values(
        _neighbour_graph(rows, k1, k2, eps, interrupt), copy=False, warn_when_not_sorted=False
    )
    labels = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(graph)
    return renumber(labels)


def jaccard_distance(features: Features, k1: int = 20, k2: int = 6) -> npt.NDArray[np.float32]:
    """Return the k-reciprocal Jaccard distance between all images.

    The list N(i, k) of an image holds the image itself first, then the others by distance and index. As in the public
    implementations, the full list has ``k1`` members and the half list ``round(k1 / 2) + 1``. R(i, k) are the members
    of N(i, k) whose own list holds i. R*(i) adds to R(i, full) each R(j, half), j in R(i, full), of which more than two
    thirds lie in R(i, full). Row i of V is the softmax of -(2 - 2 cos) over R*(i), then the mean of the rows of the
    first ``k2`` of N(i) (local query expansion); the distance is 1 - m / (2 - m) with m_ij = sum_l min(V_il, V_jl).

    Parameters
    ----------
    features
        float32[n, D], rows L2-normalised; lists longer than n are cut to n.
    k1, k2
        Positive; ``k2 = 1`` switches the expansion off.

    Returns
    -------
    float32[n, n] in [0, 1], exactly symmetric, exact zeros on the diagonal.

    Raises
    ------
    TrainingError
        When a feature is not finite.
    ValueError
        When ``k1`` or ``k2`` is not positive or the features are not a matrix.
    """
    rows = _checked(features, k1, k2)
    distance = np.empty((len(rows), len(rows)), dtype=np.float32)
    for start, stop, block in _jaccard_blocks(rows, k1, k2):
        distance[start:stop] = block
    return distance


def renumber(labels: npt.ArrayLike) -> Labels:
    """Return int64 labels counted 0, 1, ... by first appearance; all negative ones become -1."""
    raw = np.asarray(labels, dtype=np.int64)
    values, first, inverse = np.unique(raw, return_index=True, return_inverse=True)
    order = np.argsort(np.where(values < 0, len(raw), first), kind="stable")
    number = np.empty(len(values), dtype=np.int64)
    number[order] = np.arange(len(values))
    number[values < 0] = -1
    return number[inverse]


def _checked(features: Features, k1: int, k2: int) -> torch.Tensor:
    rows = torch.as_tensor(features).detach()
    if rows.ndim != 2:
        message = f"features have shape {tuple(rows.shape)}: expected [images, dimensions]"
        raise ValueError(message)
    if k1 < 1 or k2 < 1:
        message = f"k1 = {k1}, k2 = {k2}: both must be positive"
        raise ValueError(message)
    bad = len(rows) - int(torch.isfinite(rows).all(dim=1).sum())
    if bad:
        message = f"the features of {bad} of {len(rows)} images are not finite: the model has diverged"
        raise TrainingError(message)
    return rows.to(torch.float32)


def _neighbour_graph(
    rows: torch.Tensor, k1: int, k2: int, eps: float, interrupt: Callable[[], None]
) -> sparse.csr_matrix:
    """Return the pairs at Jaccard distance <= eps as CSR, zeros stored (a copy of an image is its neighbour)."""
    counts, columns, values = [], [], []
    for _, _, block in _jaccard_blocks(rows, k1, k2):
        near = block <= eps
        counts.append(near.sum(axis=1))
        columns.append(np.nonzero(near)[1])
        values.append(block[near])
        interrupt()
    pointers = np.concatenate(([0], np.cumsum(np.concatenate(counts))))
    return sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), pointers), shape=(len(rows), len(rows)))


def _jaccard_blocks(rows: torch.Tensor, k1: int, k2: int) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
    """Yield (start, stop, float32[stop - start, n]) blocks of the distance matrix, top to bottom."""
    if len(rows) == 0:
        return
    lists = nearest(rows, max(k1, k2))
    weights = reciprocal_weights(rows, lists[:, :k1], lists[:, : round(k1 / 2) + 1])
    yield from minimum_blocks(expand_queries(weights, lists[:, :k2]))


def nearest(rows: torch.Tensor, k: int, farthest: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.int64]:
    """Return int64[n, min(k, n)]: the image itself, then its nearest others by (distance, index).

    The largest distance 2 - 2 cos of each row is written to ``farthest``, float32[n], if given.

    Distance bits and index are packed into one integer key (non-negative floats order like their bits), so a partial
    selection is exact and stable without sorting whole rows.
    """
    n = len(rows)
    columns = torch.arange(n, device=rows.device)
    lists = []
    for start, stop in _spans(n, max(1, _BLOCK_ENTRIES // n)):
        distance = (2 - 2 * rows[start:stop] @ rows.T).clamp_(min=0)
        if farthest is not None:
            farthest[start:stop] = distance.amax(dim=1).cpu().numpy()
        keys = distance.view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(columns)
        keys[columns[: stop - start], columns[start:stop]] = -1
        best = torch.topk(keys, min(k, n), largest=False, sorted=True).values.bitwise_and_(0xFFFFFFFF)
        best[:, 0] = columns[start:stop]
        lists.append(best.cpu())
    return torch.cat(lists).numpy()


def reciprocal_weights(
    rows: torch.Tensor,
    full_lists: npt.NDArray[np.int64],
    half_lists: npt.NDArray[np.int64],
    scale: npt.NDArray[np.float32] | None = None,
) -> sparse.csr_matrix:
    """Return V before query expansion: CSR float32[n, n], rows sum to 1.

    Distances of row i are multiplied by ``scale[i]``, float32[n], if given.
    """
    full = _reciprocal(full_lists)
    half = _reciprocal(half_lists)
    common = full.multiply(full @ half.T).tocoo()  # at (i, j) in R(full): how many of R(j, half) are in R(i, full)
    size = np.diff(half.indptr)
    taken = 3 * common.data > 2 * size[common.col]
    joined = sparse.csr_matrix(
        (np.ones(int(taken.sum()), np.int32), (common.row[taken], common.col[taken])), full.shape
    )
    members = (full + joined @ half).tocsr()
    members.sort_indices()
    return _softmax_rows(rows, members.indptr, members.indices, scale)


def _reciprocal(lists: npt.NDArray[np.int64]) -> sparse.csr_matrix:
    """Return the k-reciprocal sets of neighbour lists as a 0/1 matrix int32[n, n]."""
    n, k = lists.shape
    ones = np.ones(n * k, dtype=np.int32)
    member = sparse.csr_matrix((ones, lists.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    return member.multiply(member.T).tocsr()


def _softmax_rows(
    rows: torch.Tensor,
    pointers: npt.NDArray[np.int32],
    columns: npt.NDArray[np.int32],
    scale: npt.NDArray[np.float32] | None,
) -> sparse.csr_matrix:
    """Return the softmax of -scale (2 - 2 cos) over the stored entries of each row; every row stores its diagonal."""
    counts = np.diff(pointers)
    i = np.repeat(np.arange(len(rows)), counts)
    distance = 2.0 - 2.0 * _pair_cosines(rows, i, columns)
    weight = np.exp(-distance if scale is None else -distance * scale[i])
    total = np.add.reduceat(weight, pointers[:-1])
    values = (weight / np.repeat(total, counts)).astype(np.float32)
    return sparse.csr_matrix((values, columns, pointers), shape=(len(rows), len(rows)))


def _pair_cosines(
    rows: torch.Tensor, left: npt.NDArray[np.int64], right: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Return float64[pairs] inner products of rows[left] and rows[right], a bounded block at a time."""
    result = torch.empty(len(left), dtype=torch.float64)
    a, b = (torch.from_numpy(index.astype(np.int64)).to(rows.device) for index in (left, right))
    for start, stop in _spans(len(left), max(1, _BLOCK_ENTRIES // max(1, rows.shape[1]))):
        result[start:stop] = (rows[a[start:stop]] * rows[b[start:stop]]).sum(dim=1).cpu()
    return result.numpy()


def expand_queries(weights: sparse.csr_matrix, lists: npt.NDArray[np.int64]) -> sparse.csr_matrix:
    """Return the mean of the rows of V in each list: CSR float32[n, n]."""
    n, k = lists.shape
    if k == 1:
        return weights
    mean = np.full(n * k, 1.0 / k, dtype=np.float32)
    expanded = sparse.csr_matrix((mean, lists.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n)) @ weights
    expanded.sort_indices()
    return expanded


def minimum_blocks(
    weights: sparse.csr_matrix, rows: int | None = None
) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
    """Yield blocks of 1 - m / (2 - m), m_ij = sum_l min(V_il, V_jl), through the inverted index of V's columns.

    Only the first ``rows`` rows are computed, if given.

    Row i meets column l's holders in ascending l, for (i, j) as for (j, i), so both sums have the same terms in the
    same order and the result is exactly symmetric.
    """
    inverted = weights.tocsc()
    inverted.sort_indices()
    n = weights.shape[0]
    work = np.add.reduceat(np.diff(inverted.indptr)[weights.indices], weights.indptr[:-1])
    for start, stop in _spans_by_work(np.maximum(work, n)[:rows]):
        yield start, stop, _minimum_block(weights, inverted, start, stop)


def _minimum_block(
    weights: sparse.csr_matrix, inverted: sparse.csc_matrix, start: int, stop: int
) -> npt.NDArray[np.float32]:
    n = weights.shape[0]
    first, last = weights.indptr[start], weights.indptr[stop]
    columns = weights.indices[first:last]
    row = np.repeat(np.arange(stop - start), np.diff(weights.indptr[start : stop + 1]))
    holders = np.diff(inverted.indptr)[columns]
    # position of every (stored entry, holder of its column) pair in the inverted index
    offset = np.arange(int(holders.sum())) - np.repeat(np.cumsum(holders) - holders, holders)
    where = np.repeat(inverted.indptr[columns], holders) + offset
    smaller = np.minimum(np.repeat(weights.data[first:last], holders), inverted.data[where])
    cell = np.repeat(row * n, holders) + inverted.indices[where]
    shared = np.bincount(cell, weights=smaller, minlength=(stop - start) * n).reshape(stop - start, n)
    distance = np.maximum(1.0 - shared / (2.0 - shared), 0.0).astype(np.float32)
    distance[np.arange(stop - start), np.arange(start, stop)] = 0.0
    return distance


def _spans(total: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, step):
        yield start, min(start + step, total)


def _spans_by_work(work: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of about `_BLOCK_ENTRIES` of work, at least one row each."""
    total = np.cumsum(work)
    start = 0
    while start < len(work):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, done + _BLOCK_ENTRIES, side="right")))
        yield start, stop
        start = stop
