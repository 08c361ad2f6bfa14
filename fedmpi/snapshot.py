"""All that the next round needs, as named arrays, and back: the joint of `federated` and `record.checkpoint`.

What is not in here does not outlive a round: every round starts a fresh optimizer, and all draws come from generators
that are functions of seed, purpose, client, round and step. The masks of all clients are known to the server, so that
only the small rest of a client's state travels (and its model, where a method exchanges none).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import numpy as tensors

import fedmpi
from fedmpi.comm import agree, gather_blobs, scatter_blobs
from fedmpi.config import RunConfig, to_yaml
from fedmpi.errors import DataError
from fedmpi.federated.client import Client, ClientState
from fedmpi.federated.history import MaskHistory
from fedmpi.federated.round import State, World
from fedmpi.federated.server import ServerState
from fedmpi.federated.world import stowed
from fedmpi.pruning import CrrState
from fedmpi.record.checkpoint import Checkpoint, CheckpointError
from fedmpi.sparse import Mask
from fedmpi.sparse.kernels import expand, pack

Arrays = dict[str, NDArray[Any]]
KNOWN = {
    ClientState: ("history", "crr", "labels", "model", "reference"),
    ServerState: ("theta", "buffers", "histories", "previous"),
    MaskHistory: ("mask", "good", "epoch"),
    CrrState: ("best",),
}
"""What is kept of each class. A new field must be added here and below, or a resumed run would differ."""


def take(world: World, state: State) -> Arrays | None:
    """*Collective*. Return the state between two rounds as named arrays on the server, None elsewhere."""
    with agree(world.ranks, "collecting the clients' states", world.patience):
        blobs = {c: tensors.save(_of_client(client, state.clients[c])) for c, client in world.clients.items()}
    everyone = gather_blobs(world.ranks, blobs, world.patience)
    if everyone is None or state.server is None:
        return None
    server = state.server
    arrays: Arrays = {"theta": server.theta, "buffers": server.buffers}
    if server.previous is not None:
        arrays["previous"] = server.previous
    for c, blob in everyone.items():
        own = _of_history(server.histories[c]) | tensors.load(blob)
        arrays |= {f"client{c}/{name}": array for name, array in own.items()}
    return arrays


def give(world: World, checkpoint: Checkpoint | None) -> State:
    """*Collective*. Return the state that a checkpoint holds; the server alone gives it.

    Raises
    ------
    SchemaError, DataError
        On all ranks (in their way, see `agree`), when it does not fit the model or the clients' data.
    """
    server, blobs = None, None
    with agree(world.ranks, "reading the checkpoint", world.patience):
        if checkpoint is not None:
            server = _server(world, checkpoint)
            blobs = {c: tensors.save(_for_client(checkpoint.arrays, server, c)) for c in world.ranks.clients}
    mine = scatter_blobs(world.ranks, blobs, world.patience)
    clients = {}
    with agree(world.ranks, "restoring the clients", world.patience) as stage:
        for c, client in world.clients.items():
            stage.enter(c)
            clients[c] = _client(client, world.learner.layout.size, tensors.load(mine[c]))
    if server is not None and checkpoint is not None and checkpoint.rounds == world.config.federation.rounds:
        clients |= _brought(world, checkpoint, server)
    return stowed(world.spill, State(clients, server))


def _brought(world: World, checkpoint: Checkpoint, server: ServerState) -> dict[int, ClientState]:
    """Return the clients elsewhere whose own models the server has after the last round, to write them down."""
    elsewhere = [c for c in world.ranks.clients if c not in world.clients]
    models = {c: _own_model(_section(checkpoint.arrays, f"client{c}/")) for c in elsewhere}
    return {c: ClientState(server.histories[c], model=model) for c, model in models.items() if model is not None}


def facts(config: RunConfig) -> dict[str, str]:
    """Return the texts of a checkpoint: what it belongs to, and what wrote it."""
    return {"config": to_yaml(config), "fedmpi": fedmpi.__version__, "torch": torch.__version__}


def _of_client(client: Client, state: ClientState) -> Arrays:
    """Return what only the client knows: CRR's bar, its clusters, and which of its images were unreadable."""
    arrays: Arrays = {"crr_best": np.array([state.crr.best])}
    if state.labels is not None:
        arrays["labels"] = np.ascontiguousarray(state.labels, np.int64)
    if state.model is not None:
        arrays |= {"own_theta": state.model[0], "own_buffers": state.model[1]}
    for name, images in _images(client).items():
        arrays[f"bad_{name}"] = np.array(sorted(images), np.int64)
    return arrays


def _images(client: Client) -> Mapping[str, set[int]]:
    data = client.data
    return {"train": data.train.bad, "query": data.query.bad, "gallery": data.gallery.bad}


def _of_history(history: MaskHistory) -> Arrays:
    """Return masks as bitmaps, uint8[ceil(N / 8)]; the good one only where it differs."""
    arrays: Arrays = {"mask": history.mask.bitmap, "epoch": np.array([history.epoch], np.int64)}
    return arrays if history.good == history.mask else {**arrays, "good": history.good.bitmap}


def _history(size: int, arrays: Mapping[str, NDArray[Any]]) -> MaskHistory:
    mask = Mask.from_bytes(arrays["mask"], size)
    good = Mask.from_bytes(arrays["good"], size) if "good" in arrays else mask
    return MaskHistory(mask, good, int(arrays["epoch"][0]))


def _section(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _server(world: World, checkpoint: Checkpoint) -> ServerState:
    layout, arrays = world.learner.layout, checkpoint.arrays
    theta, buffers = arrays["theta"], arrays["buffers"]
    if theta.shape != (layout.size,) or buffers.shape != (layout.buffer_size,):
        expected = f"{layout.size} parameters and {layout.buffer_size} buffer entries"
        raise CheckpointError(f"the checkpoint holds {theta.size} and {buffers.size}, the model has {expected}")
    histories = {c: _history(layout.size, _section(arrays, f"client{c}/")) for c in world.ranks.clients}
    previous = arrays.get("previous") if world.reduce.keeps_references else None
    return ServerState(np.require(theta, requirements="W"), buffers, histories, previous)


def _for_client(arrays: Mapping[str, NDArray[Any]], server: ServerState, client: int) -> Arrays:
    """Return what a client is given back; of what it received last, only what its mask keeps is ever looked at."""
    own = _section(arrays, f"client{client}/")
    if server.previous is None:
        return own
    mask = server.histories[client].mask
    return {**own, "reference": pack(server.previous, mask, 0, mask.size)}


def _client(client: Client, size: int, arrays: Arrays) -> ClientState:
    labels, images = arrays.get("labels"), len(client.data.train)
    if labels is not None and labels.shape != (images,):
        message = f"the checkpoint knows {labels.size} training images, there are {images}: the data have changed"
        raise DataError(message)
    for name, bad in _images(client).items():
        bad |= set(arrays[f"bad_{name}"].tolist())
    history, crr = _history(size, arrays), CrrState(float(arrays["crr_best"][0]))
    return ClientState(history, crr, labels, _own_model(arrays), _reference(history.mask, arrays))


def _reference(mask: Mask, arrays: Arrays) -> NDArray[np.float32] | None:
    """Return what the client received last, zero where its mask keeps nothing."""
    if "reference" not in arrays:
        return None
    reference = np.empty(mask.size, np.float32)
    expand(arrays["reference"], mask, 0, mask.size, reference)
    return reference


def _own_model(arrays: Arrays) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return the model that a client keeps to itself, if it has one."""
    return (arrays["own_theta"], arrays["own_buffers"]) if "own_theta" in arrays else None
