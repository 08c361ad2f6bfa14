import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.federated.history import MaskHistory
from fedmpi.sparse import Mask

N = 100


def mask(*pruned: int) -> Mask:
    kept = np.ones(N, bool)
    kept[list(pruned)] = False
    return Mask.from_bool(kept)


def test_begins_dense_with_nothing_to_give_back():
    history = MaskHistory.dense(N)
    assert history.mask.is_full
    assert (history.good, history.epoch, history.lost.count()) == (history.mask, 0, 0)


def test_pruning_advances_the_epoch_only_when_the_mask_changes():
    history = MaskHistory.dense(N)
    assert history.pruned(mask()) is history
    pruned = history.pruned(mask(3, 5))
    assert (pruned.mask, pruned.good, pruned.epoch) == (mask(3, 5), mask(), 1)
    assert pruned.pruned(mask(3, 5)).epoch == 1


def test_passing_moves_the_good_mask_and_not_the_epoch():
    history = MaskHistory.dense(N).pruned(mask(3)).passed()
    assert (history.mask, history.good, history.epoch) == (mask(3), mask(3), 1)


def test_recovery_gives_back_what_was_lost_since_the_last_good_round():
    history = MaskHistory.dense(N).pruned(mask(3)).passed().pruned(mask(3, 5, 8))
    assert np.flatnonzero(history.lost.to_bool()).tolist() == [5, 8]
    recovered = history.recovered()
    assert (recovered.mask, recovered.good, recovered.epoch) == (mask(3), mask(3), 3)
    assert recovered.lost.count() == 0


@given(st.lists(st.sampled_from(["prune", "pass", "recover", "same"]), max_size=30))
def test_good_always_holds_the_mask_and_epochs_never_repeat_for_other_masks(events):
    history, seen = MaskHistory.dense(N), {0: mask()}
    for turn, event in enumerate(events):
        if event == "prune":
            kept = history.mask.to_bool().copy()
            kept[turn] = False
            history = history.pruned(Mask.from_bool(kept))
        history = {"pass": history.passed, "recover": history.recovered}.get(event, lambda h=history: h)()
        assert seen.setdefault(history.epoch, history.mask) == history.mask
        assert not (history.mask.to_bool() & ~history.good.to_bool()).any()
