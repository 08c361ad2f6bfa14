"""A client whose models move through a staging buffer does what it does without one."""

import numpy as np
import pytest
import torch

from fedmpi.comm.parcels import Parcel
from fedmpi.comm.staging import Staging
from fedmpi.federated.client import Client, ClientState, Measurements, Received
from fedmpi.federated.history import MaskHistory
from fedmpi.federated.learner import Learner
from fedmpi.reid.datasets import load_client
from fedmpi.sparse import Mask

CPU = torch.device("cpu")


@pytest.mark.usefixtures("tiny_net")
@pytest.mark.parametrize("method", ["fedklpr", "lotteryfl", "subfedavg"])
def test_a_client_behind_a_staging_sends_the_same_update(tiny_config, method):
    """Its received model, teacher, training and pruning included, whatever policy chooses the mask."""
    config = tiny_config(f"method={method}", "lotteryfl.threshold=0", "crr.enabled=false", "federation.rounds=3")
    updates = []
    for staged in (False, True):
        learner = Learner(config, CPU)
        client = Client(0, load_client(config.data, config.run.seed, 0), learner)
        theta, buffers = learner.read()
        kept = np.ones(theta.size, bool)
        for where in learner.prunable:
            kept[where] = np.random.default_rng(0).random(where.stop - where.start) < 0.9
        mask = Mask.from_bool(kept)
        if staged:
            learner.staging = Staging(CPU, theta.size)
        state = ClientState(MaskHistory(mask, mask, 1), labels=np.zeros(len(client.data.train), np.int64))
        updates.append(client.train(state, Received(theta * kept, buffers), 1, Measurements())[1])
        learner.free()
    plain, staged = updates
    assert plain.mask == staged.mask
    assert (plain.mask == mask) == (method == "subfedavg")  # the others have pruned: one before, one after training
    assert plain.values.tobytes() == staged.values.tobytes()
    assert plain.buffers.tobytes() == staged.buffers.tobytes()
    assert plain.divergence == staged.divergence


@pytest.mark.usefixtures("tiny_net")
def test_a_rank_on_the_cpu_has_none(tiny_config):
    learner = Learner(tiny_config(), CPU)
    assert learner.staging is None
    learner.free()


@pytest.mark.usefixtures("tiny_net")
@pytest.mark.parametrize("staged", [True, False])
def test_a_model_that_arrived_on_the_device_is_the_received_one(tiny_config, staged):
    learner = Learner(tiny_config(), CPU)
    size = learner.layout.size
    if staged:
        learner.staging = Staging(CPU, size)
    kept = np.random.default_rng(0).random(size) < 0.4
    theta = np.where(kept, np.random.default_rng(1).standard_normal(size), 0).astype(np.float32)
    buffers = np.zeros(learner.layout.buffer_size, np.float32)
    parcel = Parcel(Mask.from_bool(kept), torch.from_numpy(theta[kept]), buffers)
    received = learner.receive(parcel)
    assert received.tobytes() == theta.tobytes()
    assert parcel.packed().tobytes() == theta[kept].tobytes()
    learner.load(received, parcel.buffers, parcel.positions)
    assert learner.read()[0].tobytes() == theta.tobytes()
