"""The state between two rounds as arrays and back."""

from dataclasses import fields, replace

import numpy as np
import pytest

from fedmpi import snapshot
from fedmpi.federated.client import ClientState
from fedmpi.federated.history import MaskHistory
from fedmpi.federated.round import first_state
from fedmpi.pruning import CrrState
from fedmpi.record.checkpoint import Checkpoint, CheckpointError
from fedmpi.sparse import Mask
from tests.tiny import one_process

pytestmark = pytest.mark.usefixtures("tiny_net")


@pytest.fixture
def world(tiny_config):
    made = one_process(tiny_config())
    yield made
    made.ranks.free()


def test_the_classes_that_are_kept_have_no_other_fields():
    """A field that is added to one of them must be added to the checkpoint as well."""
    assert {kind: tuple(field.name for field in fields(kind)) for kind in snapshot.KNOWN} == snapshot.KNOWN


def test_comes_back_as_it_was(world):
    rng = np.random.default_rng(0)
    size = world.learner.layout.size
    good, mask = (Mask.from_bool(rng.random(size) < share) for share in (0.9, 0.5))
    state = first_state(world).with_histories({0: MaskHistory(mask, good, 7), 1: MaskHistory(mask, mask, 3)})
    labels = np.arange(len(world.clients[0].data.train)) - 1
    model = tuple(rng.standard_normal(n).astype(np.float32) for n in (size, 48))
    own = {
        0: replace(state.clients[0], crr=CrrState(0.125), labels=labels),
        1: ClientState(state.clients[1].history, model=model),  # has neither been judged nor trained
    }
    world.clients[1].data.query.bad.update({3, 1})
    arrays = snapshot.take(world, replace(state, clients=own))
    world.clients[1].data.query.bad.clear()
    back = snapshot.give(world, Checkpoint(1, {name: array.copy() for name, array in arrays.items()}, {}))
    assert back.server.histories == {0: MaskHistory(mask, good, 7), 1: MaskHistory(mask, mask, 3)}
    assert {c: s.history for c, s in back.clients.items()} == back.server.histories
    np.testing.assert_array_equal(back.server.theta, state.server.theta)
    np.testing.assert_array_equal(back.server.buffers, state.server.buffers)
    assert back.server.theta.flags.writeable
    assert back.clients[0].crr == CrrState(0.125)
    np.testing.assert_array_equal(back.clients[0].labels, labels)
    assert np.isnan(back.clients[1].crr.best)
    assert back.clients[1].labels is None
    assert back.clients[0].model is None
    for restored, original in zip(back.clients[1].model, model, strict=True):
        np.testing.assert_array_equal(restored, original)
    assert world.clients[1].data.query.bad == {1, 3}


def test_another_model_is_refused(world):
    arrays = snapshot.take(world, first_state(world))
    arrays["theta"] = arrays["theta"][:-1]
    with pytest.raises(CheckpointError, match="holds 2071 and 48, the model has 2072 parameters and 48 buffer entries"):
        snapshot.give(world, Checkpoint(1, arrays, {}))
