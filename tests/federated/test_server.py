from types import MappingProxyType

import numpy as np
import pytest

from fedmpi.errors import TrainingError, WireError
from fedmpi.federated.server import SCALARS, mask_of, mean_buffers, refused, select, weigh
from fedmpi.sparse import Head, Kind, Mask

N = 16
PRUNABLE = [slice(0, 4), slice(8, 12)]


def head(client, *, divergence=1.0, images=10.0, norm=1.0, kept=8, buffers=(0.0,)) -> Head:
    """An update that keeps ``kept`` of the eight prunable weights."""
    mask = np.ones(N, bool)
    places = np.r_[0:4, 8:12]
    mask[places[kept:]] = False
    scalars = dict(zip(SCALARS, (np.nan,) * 3, strict=True)) | {
        "divergence": divergence,
        "images": images,
        "norm": norm,
    }
    return Head(
        kind=Kind.UPDATE,
        round=0,
        client=client,
        base_epoch=0,
        epoch=0,
        mask=Mask.from_bool(mask),
        buffers=np.array(buffers, np.float32),
        scalars=np.array([scalars[name] for name in SCALARS]),
    )


class TestWeigh:
    """By hand: divergences 1, 2, 1 and densities 1, 1/2, 1/2; images 10, 20, 70."""

    HEADS = (
        head(0, divergence=1, images=10, kept=8),
        head(1, divergence=2, images=20, kept=4),
        head(2, divergence=1, images=70, kept=4),
    )

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            # KLAW 1/4 2/4 1/4, PRAW 1/5 2/5 2/5: products 1 : 4 : 2
            ((), [1 / 7, 4 / 7, 2 / 7]),
            (("praw.enabled=false",), [1 / 4, 2 / 4, 1 / 4]),
            (("praw.rule=pruned",), [0, 2 / 3, 1 / 3]),
            # PRAW 1/2 1/4 1/4: products 2 : 2 : 1
            (("praw.rule=kept",), [2 / 5, 2 / 5, 1 / 5]),
            # by images 0.1 0.2 0.7: products 1 : 4 : 14
            (("klaw.enabled=false",), [1 / 19, 4 / 19, 14 / 19]),
            (("klaw.enabled=false", "praw.enabled=false"), [0.1, 0.2, 0.7]),
            # alpha 1/4: 1/16 + 3/20, 2/16 + 6/20, 1/16 + 6/20
            (("klpwa.mix=convex", "klpwa.alpha=0.25"), [0.2125, 0.425, 0.3625]),
            # exp(-1) : exp(-2) : exp(-1) and PRAW 1 : 2 : 2, all times e
            (
                ("klaw.sign=alignment",),
                [1 / (3 + 2 / np.e), (2 / np.e) / (3 + 2 / np.e), 2 / (3 + 2 / np.e)],
            ),
        ],
    )
    def test_by_hand(self, tiny_config, overrides, expected):
        weights = weigh(list(self.HEADS), PRUNABLE, tiny_config(*overrides))
        np.testing.assert_allclose(weights.weight, expected, rtol=1e-12)
        assert not weights.uniform

    def test_nothing_learned_and_nothing_pruned_is_uniform_and_says_so(self, tiny_config):
        heads = [head(c, divergence=0.0) for c in range(4)]
        np.testing.assert_allclose(weigh(heads, PRUNABLE, tiny_config()).weight, [0.25] * 4)
        weights = weigh(
            [head(0, divergence=1, kept=8), head(1, divergence=0, kept=4)], PRUNABLE, tiny_config("praw.rule=pruned")
        )
        np.testing.assert_allclose(weights.weight, [0.5, 0.5])
        assert weights.uniform


class TestRefused:
    def test_good_updates(self):
        assert refused({c: head(c, norm=n) for c, n in enumerate((1.0, 2.0, 99.0))}, norm_limit=100.0) == {}

    def test_not_finite(self):
        reasons = refused({0: head(0), 4: head(4, norm=np.nan), 5: head(5, norm=np.inf)}, norm_limit=100.0)
        assert reasons == {4: "its norm is nan", 5: "its norm is inf"}

    def test_far_above_the_median_of_the_finite(self):
        norms = (1.0, 2.0, 3.0, 2.0 * 100, 2.0 * 100 + 1, np.nan)  # the median of the five finite ones is 3
        reasons = refused({c: head(c, norm=n) for c, n in enumerate(norms)}, norm_limit=67.0)
        assert set(reasons) == {5}
        reasons = refused({c: head(c, norm=n) for c, n in enumerate(norms)}, norm_limit=66.9)
        assert set(reasons) == {4, 5}
        assert reasons[4] == "its norm 201 is more than 66.9 times the median 3"


class TestSelect:
    HEADS = MappingProxyType(
        {0: head(0, divergence=1), 1: head(1, divergence=9, norm=np.nan), 2: head(2, divergence=3)}
    )

    def test_a_refused_update_ends_the_run(self, tiny_config):
        with pytest.raises(TrainingError, match=r"update refused: client 1: its norm is nan .*comm\.bad_update"):
            select(self.HEADS, PRUNABLE, tiny_config())

    def test_or_is_left_out(self, tiny_config):
        selection = select(self.HEADS, PRUNABLE, tiny_config("comm.bad_update=skip"))
        assert (selection.merged, list(selection.skipped)) == ([0, 2], [1])
        np.testing.assert_allclose(selection.weights.weight, [0.25, 0.75])

    def test_none_left(self, tiny_config):
        with pytest.raises(TrainingError, match=r"client 0: .*; client 1: "):
            select({c: head(c, norm=np.inf) for c in (0, 1)}, PRUNABLE, tiny_config("comm.bad_update=skip"))

    def test_in_client_order_whatever_order_they_came_in(self, tiny_config):
        heads = {c: head(c, divergence=c + 1) for c in (2, 0, 1)}
        selection = select(heads, PRUNABLE, tiny_config())
        assert selection.merged == [0, 1, 2]
        np.testing.assert_allclose(selection.weights.weight, [1 / 6, 2 / 6, 3 / 6])


def test_mean_of_buffers_is_weighted():
    heads = [head(0, buffers=(1.0, 10.0)), head(1, buffers=(2.0, 30.0)), head(2, buffers=(5.0, -10.0))]
    mean = mean_buffers(heads, np.array([0.5, 0.25, 0.25]))
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, [2.25, 10.0])


def test_an_update_without_mask_is_refused():
    request = Head(kind=Kind.REQUEST, round=0, client=3, base_epoch=0, epoch=0, mask=None)
    with pytest.raises(WireError, match="client 3 has no mask"):
        mask_of(request)
