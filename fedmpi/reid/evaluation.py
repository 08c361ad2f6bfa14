"""Retrieval scores: mean average precision and CMC of single-query person re-identification.

The protocol of Market-1501 (Zheng et al., ICCV 2015): cosine similarity, single query; `fedmpi.reid.protocol` names the
variants. For each query, gallery entries with the query's identity *and* camera are dropped, and so is junk (identity
-1). Distractors (identity 0 in Market-1501) need no rule of their own: no query has their identity, so they stay as
wrong answers; where 0 is the number of a real person it counts as one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from fedmpi.errors import TrainingError
from fedmpi.reid.protocol import STANDARD, Protocol
from fedmpi.reid.reranking import reranked_blocks

Features = npt.NDArray[np.float32] | torch.Tensor
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

JUNK = -1
_CHUNK_ENTRIES = 1 << 22  # similarities held at a time: 16 MB, with ranks and masks about 80 MB


@dataclass(frozen=True)
class RetrievalScore:
    """Scores of one query set against one gallery.

    Attributes
    ----------
    mean_ap
        Mean over the scored queries of the average precision, in [0, 1]; NaN when no query could be scored.
    cmc
        Share of scored queries with a correct answer among the first r, by r; NaN when no query could be scored.
    queries
        Number of queries that enter the means.
    skipped
        Number of queries without any valid match in the gallery; they enter no mean, unless the protocol counts them
        as zero.
    """

    mean_ap: float
    cmc: dict[int, float]
    queries: int
    skipped: int


def score(
    query_features: Features,
    query_pids: IntArray,
    query_camids: IntArray,
    *,
    gallery_features: Features,
    gallery_pids: IntArray,
    gallery_camids: IntArray,
    ranks: Sequence[int] = (1, 5, 10),
    protocol: Protocol = STANDARD,
) -> RetrievalScore:
    """Rank the gallery for every query and score the ranking.

    Features are L2-normalised here. Gallery entries of equal similarity are ranked by their position in the gallery.
    Queries are taken in chunks, so memory is bounded by the gallery's length. The work happens on the device of the
    query features.

    Parameters
    ----------
    query_features, gallery_features
        float32[n, D], NumPy arrays or tensors.
    query_pids, query_camids, gallery_pids, gallery_camids
        int64[n] identities and cameras.
    ranks
        The r of the CMC, positive.
    protocol
        Kind of average precision, queries without a match, re-ranking; its flip concerns who made the features.

    Raises
    ------
    TrainingError
        When a feature is not finite: the model has diverged.
    ValueError
        When the lengths within a set differ or a rank is not positive.
    """
    if any(rank < 1 for rank in ranks):
        message = f"ranks = {list(ranks)}: must be positive"
        raise ValueError(message)
    queries = _unit_rows("query", query_features, query_pids, query_camids)
    gallery = _unit_rows("gallery", gallery_features, gallery_pids, gallery_camids).to(queries.device)
    precisions, firsts = [np.empty(0)], [np.empty(0, dtype=np.int64)]
    for start, stop, similarity in _similarities(queries, gallery, protocol):
        rows = slice(start, stop)
        same = query_pids[rows, None] == gallery_pids
        dropped = same & (query_camids[rows, None] == gallery_camids) | (gallery_pids == JUNK)
        hits, counts = _hit_positions(similarity, same & ~dropped, dropped)
        precision, first = _per_query(hits, counts, protocol)
        precisions.append(precision)
        firsts.append(first)
    return _summary(np.concatenate(precisions), np.concatenate(firsts), ranks, len(queries), protocol)


def _similarities(
    queries: torch.Tensor, gallery: torch.Tensor, protocol: Protocol
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (start, stop, float32[stop - start, G]) for all queries; larger is more similar."""
    if protocol.rerank is not None and len(gallery):
        r = protocol.rerank
        for start, stop, distance in reranked_blocks(queries, gallery, k1=r.k1, k2=r.k2, weight=r.weight):
            yield start, stop, torch.from_numpy(-distance)
        return
    step = max(1, _CHUNK_ENTRIES // max(1, len(gallery)))
    for start in range(0, len(queries), step):
        stop = min(start + step, len(queries))
        yield start, stop, queries[start:stop] @ gallery.T


def _unit_rows(name: str, features: Features, pids: IntArray, camids: IntArray) -> torch.Tensor:
    rows = torch.as_tensor(features).detach()
    if not len(rows) == len(pids) == len(camids):
        message = f"{name}: {len(rows)} features, {len(pids)} pids and {len(camids)} camids: lengths differ"
        raise ValueError(message)
    bad = len(rows) - int(torch.isfinite(rows).all(dim=1).sum())
    if bad:
        message = f"the {name} features of {bad} of {len(rows)} images are not finite: the model has diverged"
        raise TrainingError(message)
    return functional.normalize(rows.to(torch.float32), dim=1)


def _hit_positions(similarity: torch.Tensor, correct: BoolArray, dropped: BoolArray) -> tuple[IntArray, IntArray]:
    """Return the 0-based ranks of all correct answers, query after query, and int64[chunk] their numbers.

    All arguments are [chunk, G]. Dropped entries rank behind all others, so that they shift nobody.
    """
    if similarity.device.type == "cpu":
        return _count_ahead(similarity.numpy(), correct, dropped)
    similarity = similarity.masked_fill(torch.from_numpy(dropped).to(similarity.device), -torch.inf)
    order = torch.sort(similarity, dim=1, descending=True, stable=True).indices
    found = torch.from_numpy(correct).to(order.device).gather(1, order)
    return found.nonzero()[:, 1].cpu().numpy(), found.sum(dim=1).cpu().numpy()


def _count_ahead(
    similarity: npt.NDArray[np.float32], correct: BoolArray, dropped: BoolArray
) -> tuple[IntArray, IntArray]:
    """Do the work of `_hit_positions` without an order of the whole gallery: sorted values tell how many are ahead.

    Sorting values is several times faster than sorting positions, and only ties need to know who is where.
    """
    behind = np.where(dropped, np.float32(-np.inf), similarity)
    ascending = np.sort(behind, axis=1)
    ranks = [np.empty(0, dtype=np.int64)]
    for row, line, where in zip(behind, ascending, correct, strict=True):
        hits = np.flatnonzero(where)
        first, last = (np.searchsorted(line, row[hits], side=side) for side in ("left", "right"))
        ahead = len(line) - last
        for tied in np.flatnonzero(last - first > 1):
            ahead[tied] += np.count_nonzero(row[: hits[tied]] == row[hits[tied]])
        ranks.append(np.sort(ahead))
    return np.concatenate(ranks), correct.sum(axis=1)


def _per_query(hits: IntArray, counts: IntArray, protocol: Protocol) -> tuple[npt.NDArray[np.float64], IntArray]:
    """Return the average precision and the first hit's rank of each query that has a hit."""
    counts = counts[counts > 0]
    if len(counts) == 0:
        return np.empty(0), np.empty(0, dtype=np.int64)
    begin = np.cumsum(counts) - counts
    number = np.arange(len(hits)) - np.repeat(begin, counts) + 1  # this is the query's 1st, 2nd, ... hit
    precision = number / (hits + 1)
    if protocol.ap == "trapezoid":  # mean with the precision just before the hit, which is 1 at the very top
        before = np.divide(number - 1, hits, out=np.ones(len(hits)), where=hits > 0)
        precision = (precision + before) / 2
    return np.add.reduceat(precision, begin) / counts, hits[begin]


def _summary(
    precision: npt.NDArray[np.float64], first: IntArray, ranks: Sequence[int], total: int, protocol: Protocol
) -> RetrievalScore:
    skipped = total - len(precision)
    scored = total if protocol.unmatched == "zero" else len(precision)
    if scored == 0:
        return RetrievalScore(float("nan"), {int(rank): float("nan") for rank in ranks}, 0, skipped)
    cmc = {int(rank): float((first < rank).sum() / scored) for rank in ranks}
    return RetrievalScore(float(precision.sum() / scored), cmc, scored, skipped)
