"""Rounds of methods that exchange nothing: clients keep their models, and only what is to be measured travels.

``local``: every client trains its own model on its own images. ``centralised``: client 0 trains on the images of all,
and every client tests its model. They bound what a federation can lose and win.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm import Direction, Known, agree, control_bytes
from fedmpi.config import RunConfig
from fedmpi.federated.client import ClientState, Flat, Received, scores
from fedmpi.federated.composition import build
from fedmpi.federated.measurements import Measurements
from fedmpi.federated.measuring import evaluate, gather_logs, is_due
from fedmpi.federated.server import SCALARS, Selection
from fedmpi.federated.weighting import Weights
from fedmpi.federated.world import Clock, RoundResult, State, World, stowed
from fedmpi.reid.datasets import ClientData, client_names, load_client
from fedmpi.reid.pooling import pool
from fedmpi.sparse import Head, Kind, Mask, values_checksum


def load_data(config: RunConfig, index: int) -> ClientData:
    """Return the images of client ``index``; the first one trains on those of all if the method pools them."""
    seed = config.run.seed
    data = load_client(config.data, seed, index)
    if not build(config).pooled or index:
        return data
    others = [load_client(config.data, seed, c).train for c in range(1, len(client_names(config.data, seed)))]
    return replace(data, train=pool([data.train, *others]))


def run_alone(world: World, state: State, round: int) -> tuple[State, RoundResult | None]:
    """*Collective*. Run one round without exchange; return the next state and, on the server, what happened.

    local training -> when due: evaluation, for which models travel in messages that no method pays for
    """
    clock, started = Clock(), time.time()
    logs = {c: Measurements({"density": 1.0}) for c in world.ranks.hosted}
    state = _train(world, state, round, logs, clock)
    evaluated = is_due(world.config, round)
    if evaluated and world.method.pooled:
        state = _lend(world, state, round, clock)
        evaluate(world, state, round, logs, clock)
    elif evaluated:
        _evaluate_own(world, state, logs, clock)
        if round == world.config.federation.rounds - 1:
            state = _collect(world, state, round, clock)
    clock.lap("round", clock.start)
    rows = gather_logs(world, logs)
    state = stowed(world.spill, state)
    if rows is None:
        return state, None
    noted, control = world.meter.take()
    messages = [replace(message, direction=Direction.EVALUATE) for message in noted]
    masks = {c: Mask.full(world.learner.layout.size) for c in world.ranks.clients}
    who = (0,) if world.method.pooled else tuple(masks)
    selection = _selection(pooled=world.method.pooled)
    return state, RoundResult(round, started, clock.seconds, rows, messages, control, selection, masks, evaluated, who)


def _selection(*, pooled: bool) -> Selection:
    """Return who made the server's model: client 0, or nobody."""
    share = np.ones(int(pooled))
    return Selection([0] if pooled else [], Weights(share, share, share, uniform=False), {})


def _train(world: World, state: State, round: int, logs: Mapping[int, Measurements], clock: Clock) -> State:
    now, clients = time.perf_counter(), dict(state.clients)
    with agree(world.ranks, "local training", world.patience) as stage:
        for c, client in world.clients.items():
            if c and world.method.pooled:
                continue
            stage.enter(c)
            world.spill.use(*clients[c].arrays())
            theta, buffers = clients[c].model or world.learner.initial()
            after, update = client.train(clients[c], Received(theta, buffers), round, logs[c])
            clients[c] = replace(after, model=(world.spill.keep(update.values), update.buffers))
    world.meter.control += control_bytes(world.ranks)
    clock.lap("local", now)
    return replace(state, clients=clients)


def _evaluate_own(world: World, state: State, logs: Mapping[int, Measurements], clock: Clock) -> None:
    """Let every client score its own model; there is no global one."""
    now = time.perf_counter()
    with agree(world.ranks, "evaluation", world.patience) as stage:
        for c, client in world.clients.items():
            stage.enter(c)
            world.spill.use(*state.clients[c].arrays())
            with logs[c].time("evaluate"):
                logs[c].values |= scores(client.evaluate(*_own(state, c)))
    world.meter.control += control_bytes(world.ranks)
    clock.lap("evaluate", now)


def _own(state: State, client: int) -> Flat:
    model = state.clients[client].model
    if model is None:
        message = f"client {client} has no model of its own"
        raise RuntimeError(message)
    return model


def _lend(world: World, state: State, round: int, clock: Clock) -> State:
    """Make the model of client 0 the server's."""
    model = _bring(world, state, round, 0, clock)
    if state.server is None or model is None:
        return state
    return replace(state, server=replace(state.server, theta=model[0], buffers=model[1]))


def _collect(world: World, state: State, round: int, clock: Clock) -> State:
    """Bring all clients' models to the server, one after the other, so that it can write them down."""
    brought = {c: _bring(world, state, round, c, clock) for c in world.ranks.clients}
    if state.server is None:
        return state
    histories = state.server.histories
    known = {c: state.clients.get(c, ClientState(histories[c])) for c in brought}
    return replace(state, clients={c: replace(known[c], model=model) for c, model in brought.items()})


def _bring(world: World, state: State, round: int, giver: int, clock: Clock) -> Flat | None:
    """*Collective*. Return the model of one client on the server, None elsewhere; all others send an empty mask."""
    now, size = time.perf_counter(), world.learner.layout.size
    full, none = Mask.full(size), Mask.from_bool(np.zeros(size, bool))
    masks = {c: full if c == giver else none for c in world.ranks.clients}
    nothing = np.empty(0, np.float32)
    models = {c: _own(state, c) if c == giver else (nothing, nothing) for c in world.ranks.hosted}
    outgoing = {c: (_head(world, round, c, masks[c], *model), full) for c, model in models.items()}
    known = dict.fromkeys(world.ranks.clients, Known(full, 0))
    heads = world.reduce.heads(Kind.UPDATE, round, outgoing, known, since=clock.start)
    theta = np.zeros(size, np.float32) if world.ranks.is_server else None
    world.reduce.merge({c: values for c, (values, _) in models.items()}, masks, heads, {giver: 1.0}, theta)
    clock.lap("evaluate", now)
    return None if theta is None else (theta, heads[giver].buffers)


def _head(
    world: World, round: int, client: int, mask: Mask, values: NDArray[np.float32], buffers: NDArray[np.float32]
) -> Head:
    return Head(
        kind=Kind.UPDATE,
        round=round,
        client=client,
        base_epoch=0,
        epoch=int(not mask.is_full),
        mask=mask,
        buffers=buffers,
        scalars=np.zeros(len(SCALARS)),
        values_checksum=values_checksum(values),
        segments=world.reduce.segments(mask),
    )
