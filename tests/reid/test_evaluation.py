"""Retrieval scores against a loop written from the protocol, and against torchmetrics where there are no ties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_hit_rate

from fedmpi.errors import TrainingError
from fedmpi.reid import evaluation
from fedmpi.reid.evaluation import score
from fedmpi.reid.protocol import Protocol, Rerank

# Exact in floating point, of norm 1, with many equal inner products.
CORNERS = np.array(np.meshgrid(*[[-0.5, 0.5]] * 4)).reshape(4, -1).T.astype(np.float32)


def loop_score(query, gallery, ranks):
    """Score one query at a time, walking down its sorted gallery."""
    precisions, firsts, skipped = [], [], 0
    for feature, pid, camid in zip(*query, strict=True):
        ranked = sorted(range(len(gallery[0])), key=lambda j, f=feature: (-float(np.dot(f, gallery[0][j])), j))
        answers = [
            gallery[1][j] == pid
            for j in ranked
            if gallery[1][j] != -1 and not (gallery[1][j] == pid and gallery[2][j] == camid)
        ]
        hits = [place for place, right in enumerate(answers, start=1) if right]
        if not hits:
            skipped += 1
            continue
        precisions.append(sum(number / place for number, place in enumerate(hits, start=1)) / len(hits))
        firsts.append(hits[0])
    cmc = {rank: sum(first <= rank for first in firsts) / len(firsts) if firsts else np.nan for rank in ranks}
    return (sum(precisions) / len(precisions) if precisions else np.nan), cmc, len(precisions), skipped


def run(query, gallery, ranks=(1, 5, 10), **protocol):
    names = ("gallery_features", "gallery_pids", "gallery_camids")
    return score(*query, **dict(zip(names, gallery, strict=True)), ranks=ranks, protocol=Protocol(**protocol))


def assert_equals_loop(query, gallery, ranks=(1, 2, 5, 10)):
    result = run(query, gallery, ranks)
    mean_ap, cmc, queries, skipped = loop_score(query, gallery, ranks)
    assert (result.queries, result.skipped) == (queries, skipped)
    assert result.mean_ap == pytest.approx(mean_ap, abs=1e-9, nan_ok=True)
    assert result.cmc == pytest.approx(cmc, abs=1e-12, nan_ok=True)


def random_set(rng, n, *, features=None, low=0):
    rows = rng.standard_normal((n, 16)) if features is None else features[rng.integers(0, len(features), n)]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), rng.integers(low, 8, n), rng.integers(1, 4, n)


def test_worked_example():
    """Query of person 3, camera 1; ranked and dropped: wrong, right, distractor, right, so AP = (1/2 + 2/4) / 2."""
    query = (np.array([[1.0, 0.0]], np.float32), np.array([3]), np.array([1]))
    angles = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    gallery = (features, np.array([3, -1, 5, 3, 0, 3]), np.array([1, 2, 2, 2, 2, 3]))
    result = run(query, gallery, ranks=(1, 2))
    assert result == evaluation.RetrievalScore(mean_ap=0.5, cmc={1: 0.0, 2: 1.0}, queries=1, skipped=0)


@pytest.mark.parametrize("seed", range(5))
def test_random_sets_with_junk_and_distractors(seed):
    rng = np.random.default_rng(seed)
    query, gallery = random_set(rng, 23, low=1), random_set(rng, 71, low=-1)
    assert (gallery[1] == -1).any()
    assert (gallery[1] == 0).any()
    assert_equals_loop(query, gallery)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 12), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_ties_go_to_the_earlier_gallery_entry(queries, answers, seed):
    rng = np.random.default_rng(seed)
    query = random_set(rng, queries, features=CORNERS, low=-1)
    assert_equals_loop(query, random_set(rng, answers, features=CORNERS, low=-1))


def test_all_similarities_equal():
    """A collapsed network ranks by position; only the stable order makes that a defined number."""
    rng = np.random.default_rng(0)
    query, gallery = (random_set(rng, n, features=CORNERS[:1]) for n in (9, 300))
    assert_equals_loop(query, gallery)


def test_identities_of_a_single_camera_are_skipped_and_counted():
    rng = np.random.default_rng(1)
    query, gallery = random_set(rng, 30), random_set(rng, 60)
    query[2][query[1] == 4] = 2
    gallery[2][gallery[1] == 4] = 2
    result = run(query, gallery)
    assert result.skipped == int((query[1] == 4).sum()) > 0
    assert_equals_loop(query, gallery)


def test_no_query_can_be_scored():
    rng = np.random.default_rng(1)
    query, gallery = random_set(rng, 5), random_set(rng, 6)
    result = run(query, (gallery[0], gallery[1] + 100, gallery[2]))
    assert (result.queries, result.skipped) == (0, 5)
    assert np.isnan(result.mean_ap)
    assert np.isnan(result.cmc[1])


def test_features_are_normalised_here():
    rng = np.random.default_rng(2)
    query, gallery = random_set(rng, 12), random_set(rng, 40)
    scaled = (gallery[0] * rng.uniform(0.1, 9, (40, 1)).astype(np.float32), *gallery[1:])
    assert run((3 * query[0], *query[1:]), scaled).mean_ap == pytest.approx(run(query, gallery).mean_ap)


def test_chunks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(3)
    query, gallery = random_set(rng, 17, features=CORNERS), random_set(rng, 50, features=CORNERS)
    whole = run(query, gallery)
    monkeypatch.setattr(evaluation, "_CHUNK_ENTRIES", 120)
    assert run(query, gallery) == whole


def test_tensors_are_accepted():
    rng = np.random.default_rng(4)
    query, gallery = random_set(rng, 17), random_set(rng, 50)
    tensors = (torch.from_numpy(query[0]).requires_grad_(), *query[1:]), (torch.from_numpy(gallery[0]), *gallery[1:])
    assert run(*tensors) == run(query, gallery)


def test_against_torchmetrics():
    """Its functions see one query without dropped entries; scores are shifted above 0, below which it sees no hits."""
    rng = np.random.default_rng(5)
    query, gallery = random_set(rng, 25), random_set(rng, 80, low=-1)
    precisions, found = [], {1: [], 5: [], 10: []}
    for feature, pid, camid in zip(*query, strict=True):
        valid = (gallery[1] != -1) & ~((gallery[1] == pid) & (gallery[2] == camid))
        preds = torch.from_numpy(gallery[0][valid] @ feature + 2.0)
        target = torch.from_numpy(gallery[1][valid] == pid)
        if target.any():
            precisions.append(float(retrieval_average_precision(preds, target)))
            for rank, hits in found.items():
                hits.append(float(retrieval_hit_rate(preds, target, top_k=rank)))
    result = run(query, gallery)
    assert result.queries == len(precisions)
    assert result.mean_ap == pytest.approx(np.mean(precisions), abs=1e-6)
    assert result.cmc == pytest.approx({rank: np.mean(hits) for rank, hits in found.items()})


def stable_places(query, gallery):
    """Yield (unique scores above 0, right answers) of each query over its valid gallery; ties keep their order."""
    for feature, pid, camid in zip(*query, strict=True):
        valid = (gallery[1] != -1) & ~((gallery[1] == pid) & (gallery[2] == camid))
        order = np.argsort(-(gallery[0][valid] @ feature), kind="stable")
        scores = np.empty(len(order), np.float32)
        scores[order] = np.arange(len(order), 0, -1)
        yield torch.from_numpy(scores), torch.from_numpy(gallery[1][valid] == pid)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("unmatched", ["skip", "zero"])
def test_against_torchmetrics_with_everything_at_once(seed, unmatched):
    """Ties, junk, distractors, identities of a single camera, queries that nobody can answer."""
    rng = np.random.default_rng(seed)
    query, gallery = random_set(rng, 40, features=CORNERS, low=1), random_set(rng, 90, features=CORNERS, low=-1)
    gallery[1][gallery[1] == 7] = 1  # nobody answers person 7
    query[2][query[1] == 4] = gallery[2][gallery[1] == 4] = 2
    precisions, found = [], {1: [], 5: [], 10: []}
    for scores, right in stable_places(query, gallery):
        if right.any() or unmatched == "zero":
            precisions.append(float(retrieval_average_precision(scores, right)))
            for rank, hits in found.items():
                hits.append(float(retrieval_hit_rate(scores, right, top_k=rank)))
    result = run(query, gallery, unmatched=unmatched)
    assert result.skipped == int(np.isin(query[1], (4, 7)).sum()) > 0
    assert result.queries == len(precisions)
    assert result.mean_ap == pytest.approx(np.mean(precisions), abs=1e-6)
    assert result.cmc == pytest.approx({rank: np.mean(hits) for rank, hits in found.items()})


# ---- variants of the field


@pytest.mark.parametrize("seed", range(5))
def test_trapezoid_is_the_area_below_the_polygon(seed):
    """Precision and recall after every place, joined by straight lines, from (recall 0, precision 1) on."""
    rng = np.random.default_rng(seed)
    query, gallery = random_set(rng, 25, features=CORNERS, low=1), random_set(rng, 70, features=CORNERS, low=-1)
    areas = []
    for scores, right in stable_places(query, gallery):
        hits = right[scores.argsort(descending=True)].numpy()
        if hits.any():
            precision = np.concatenate([[1.0], np.cumsum(hits) / np.arange(1, len(hits) + 1)])
            recall = np.concatenate([[0.0], np.cumsum(hits) / hits.sum()])
            areas.append(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))
    result = run(query, gallery, ap="trapezoid")
    assert result.mean_ap == pytest.approx(np.mean(areas), abs=1e-9)
    assert result.mean_ap < run(query, gallery).mean_ap
    assert result.cmc == run(query, gallery).cmc


def test_both_ways_of_finding_the_hits_agree():
    """The CPU counts who is ahead, the GPU sorts; here the sorting is done on the CPU, by the definition."""
    rng = np.random.default_rng(7)
    for _ in range(50):
        similarity = torch.from_numpy(rng.integers(-3, 3, (6, 30)).astype(np.float32))
        dropped = rng.random((6, 30)) < 0.3
        correct = (rng.random((6, 30)) < 0.2) & ~dropped
        order = np.argsort(np.where(dropped, np.inf, -similarity.numpy()), axis=1, kind="stable")
        wanted = [np.flatnonzero(c[o]) for c, o in zip(correct, order, strict=True)]
        hits, counts = evaluation._hit_positions(similarity, correct, dropped)
        assert hits.tolist() == np.concatenate(wanted).tolist()
        assert counts.tolist() == [len(places) for places in wanted]


def slow_rerank(query, gallery, k1, k2, weight):
    """Re-rank as the paper and its authors' code describe it, image by image, with whole matrices."""
    x = np.concatenate([query, gallery]).astype(np.float64)
    distance = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    n = len(x)
    nearest = [[i, *(j for j in np.argsort(distance[i], kind="stable") if j != i)] for i in range(n)]
    distance /= distance.max(axis=1, keepdims=True)

    def reciprocal(i, k):
        return {j for j in nearest[i][: k + 1] if i in nearest[j][: k + 1]}

    v = np.zeros((n, n))
    for i in range(n):
        members = reciprocal(i, k1)
        for j in set(members):
            candidate = reciprocal(j, round(k1 / 2))
            if len(candidate & reciprocal(i, k1)) > 2 / 3 * len(candidate):
                members |= candidate
        chosen = sorted(members)
        v[i, chosen] = np.exp(-distance[i, chosen])
        v[i] /= v[i].sum()
    v = np.array([v[nearest[i][:k2]].mean(axis=0) for i in range(n)])
    q = len(query)
    shared = np.array([[np.minimum(v[i], v[j]).sum() for j in range(q, n)] for i in range(q)])
    return (1 - weight) * (1 - shared / (2 - shared)) + weight * distance[:q, q:]


@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.3), (7, 3, 0.0), (8, 4, 1.0), (200, 6, 0.5)])
def test_reranking(monkeypatch, k1, k2, weight):
    from fedmpi.reid import clustering
    from fedmpi.reid.reranking import reranked_blocks

    rng = np.random.default_rng(k1)
    query, gallery = (random_set(rng, n)[0] for n in (21, 64))
    wanted = slow_rerank(query, gallery, k1, k2, weight)
    monkeypatch.setattr(clustering, "_BLOCK_ENTRIES", 700)
    blocks = list(reranked_blocks(torch.from_numpy(query), torch.from_numpy(gallery), k1=k1, k2=k2, weight=weight))
    assert len(blocks) > 1
    assert [start for start, _, _ in blocks] == [0, *(stop for _, stop, _ in blocks[:-1])]
    np.testing.assert_allclose(np.concatenate([block for _, _, block in blocks]), wanted, atol=2e-6)


def test_reranked_scores_are_those_of_the_reranked_order():
    rng = np.random.default_rng(8)
    query, gallery = random_set(rng, 20, low=1), random_set(rng, 60, low=-1)
    distance = slow_rerank(query[0], gallery[0], 10, 3, 0.3)
    eye = np.eye(20, dtype=np.float32)  # a query asks for its own row of similarities
    wanted = loop_score((eye, *query[1:]), ((2 - distance).T, *gallery[1:]), (1, 5, 10))
    result = run(query, gallery, rerank=Rerank(10, 3, 0.3))
    assert result.mean_ap == pytest.approx(wanted[0], abs=1e-9)
    assert result.cmc == pytest.approx(wanted[1])
    assert result.mean_ap != run(query, gallery).mean_ap


def test_reranking_nothing():
    rng = np.random.default_rng(9)
    some, none = random_set(rng, 4), random_set(rng, 0)
    assert run(none, some, rerank=Rerank()).queries == 0
    assert run(some, none, rerank=Rerank()).skipped == 4


def test_names_of_protocols():
    from fedmpi.config.protocol import ProtocolConfig

    assert Protocol().name == "cosine, AP mean, unmatched skip, no flip, no re-ranking"
    assert Protocol.of(ProtocolConfig()) == Protocol()
    config = ProtocolConfig(ap="trapezoid", unmatched="zero", flip=True, rerank={"enabled": True, "k1": 9})
    assert Protocol.of(config) == Protocol("trapezoid", "zero", flip=True, rerank=Rerank(9, 6, 0.3))
    assert Protocol.of(config).name == (
        "cosine, AP trapezoid, unmatched zero, flip, re-ranking k1=9 k2=6 weight=0.3"
    )  # fmt: skip


def test_diverged_features_are_named():
    rng = np.random.default_rng(6)
    query, gallery = random_set(rng, 4), random_set(rng, 6)
    gallery[0][2, 1] = np.nan
    with pytest.raises(TrainingError, match="gallery features of 1 of 6 images are not finite"):
        run(query, gallery)


def test_bad_arguments_are_named():
    rng = np.random.default_rng(6)
    query, gallery = random_set(rng, 4), random_set(rng, 6)
    with pytest.raises(ValueError, match="query: 4 features, 3 pids"):
        run((query[0], query[1][:3], query[2]), gallery)
    with pytest.raises(ValueError, match=r"ranks = \[0\]"):
        run(query, gallery, ranks=(0,))
