"""One round, one way: what all ranks run together, and what comes out of it."""

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm import Address, Direction, Known, agree, control_bytes
from fedmpi.federated.alone import run_alone
from fedmpi.federated.client import Received, Update
from fedmpi.federated.history import MaskHistory
from fedmpi.federated.measurements import Measurements
from fedmpi.federated.measuring import CLIENT_FIELDS, evaluate, gather_logs, is_due, source
from fedmpi.federated.server import SCALARS, Selection, mask_of, mean_buffers, select
from fedmpi.federated.spill import Shelf
from fedmpi.federated.world import Clock, RoundResult, State, World, first_state, stowed
from fedmpi.pruning import density
from fedmpi.sparse import Flag, Head, Kind


def run_round(world: World, state: State, round: int) -> tuple[State, RoundResult | None]:
    """*Collective*. Run one round; return the next state and, on the server, what happened.

    downlink -> stage 2 of CRR -> local training, pruning -> uplink, merge -> evaluation when due -> measurements
    """
    if not world.method.exchanges:
        return run_alone(world, state, round)
    clock, started = Clock(), time.time()
    world.meter.take_seconds()  # of what came before: models that moved only to be evaluated
    logs = {c: Measurements() for c in world.ranks.hosted}
    _note_absent(world, state, round, logs)
    state, received = _deliver(world, state, round, logs, clock)
    state, updates = _train(world, state, received, round, logs, clock)
    state, selection = _aggregate(world, state, updates, round, clock)
    _note_stages(world, logs, clock)
    evaluated = is_due(world.config, round)
    if evaluated:
        evaluate(world, state, round, logs, clock)
    clock.lap("round", clock.start)
    rows = gather_logs(world, logs)
    state = stowed(world.spill, state)
    if rows is None or selection is None:
        return state, None
    messages, control = world.meter.take()
    masks, taken = {c: h.mask for c, h in state.histories().items()}, world.participants(round)
    return state, RoundResult(
        round, started, clock.seconds, rows, messages, control, selection, masks, evaluated, taken
    )


def _note_stages(world: World, logs: Mapping[int, Measurements], clock: Clock) -> None:
    """Take over where the time of the exchange went: stages of this rank, and the encoding of its clients' updates."""
    stages, encoding = world.meter.take_seconds()
    clock.seconds |= stages
    for c, seconds in encoding.items():
        logs[c].values["seconds_encode"] += seconds


def _deliver(
    world: World, state: State, round: int, logs: Mapping[int, Measurements], clock: Clock
) -> tuple[State, dict[int, Received]]:
    """Downlink, and CRR's stage 2: the clients judge what they got, and fetch what they need back."""
    before = world.participants(round - 1)  # the others do not have what the server sent down last
    references = {c: r if c in before else None for c, r in state.references().items()}
    addresses = {c: Address(h.mask, h.epoch, references[c]) for c, h in _histories(world, state, round).items()}
    now = clock.start
    parcels = world.scatter(Kind.MODEL, round, addresses, source(state), since=clock.start)
    now = clock.lap("downlink", now)
    received: dict[int, Received] = {}
    clients = dict(state.clients)
    with agree(world.ranks, "judging the received model", world.patience) as stage:
        for c, client in world.taking_part(round).items():
            stage.enter(c)
            world.spill.use(parcels[c].values, *clients[c].arrays())
            clients[c], received[c] = client.check(clients[c], parcels[c], logs[c])
    world.meter.control += control_bytes(world.ranks)
    state = replace(state, clients=clients)
    now = clock.lap("local", now)
    if world.method.sparsity.recovers:
        state, received = _recover(world, state, received, round, clock)
        clock.lap("downlink", now)
    if world.reduce.keeps_references:
        theta = {c: r.theta for c, r in received.items()}
        clients = {c: replace(s, reference=theta.get(c)) for c, s in state.clients.items()}
        state = replace(state, clients=clients)
    return state, received


def _recover(
    world: World, state: State, received: dict[int, Received], round: int, clock: Clock
) -> tuple[State, dict[int, Received]]:
    """Each client tells the server whether it recovers; those that do get the lost positions from the global model."""
    requests = {
        c: (_request(world, round, c, state.clients[c].history, recover=r.recover), state.clients[c].history.mask)
        for c, r in received.items()
    }
    heads = world.reduce.heads(Kind.REQUEST, round, requests, _known(world, state, round), since=clock.start)
    recovering = {c for c, head in heads.items() if head.flags & Flag.RECOVER} | {
        c for c, r in received.items() if r.recover
    }
    histories = _histories(world, state, round)
    addresses = {c: Address(histories[c].lost, histories[c].epoch) for c in recovering}
    if addresses:
        parcels = world.scatter(Kind.RECOVERED, round, addresses, source(state), since=clock.start)
        received = received | {
            c: world.clients[c].recover(state.clients[c], received[c], parcel) for c, parcel in parcels.items()
        }
    after = {c: h.recovered() if c in recovering else h.passed() for c, h in histories.items()}
    return state.with_histories(after), received


def _request(world: World, round: int, client: int, history: MaskHistory, *, recover: bool) -> Head:
    return Head(
        kind=Kind.REQUEST,
        round=round,
        client=client,
        base_epoch=history.epoch,
        epoch=history.epoch,
        mask=None,
        flags=Flag.RECOVER if recover else 0,
        segments=world.reduce.segments(None),
    )


def _train(
    world: World,
    state: State,
    received: Mapping[int, Received],
    round: int,
    logs: Mapping[int, Measurements],
    clock: Clock,
) -> tuple[State, dict[int, Update]]:
    now = time.perf_counter()
    updates: dict[int, Update] = {}
    clients = dict(state.clients)
    with agree(world.ranks, "local training", world.patience) as stage:
        for c, client in world.taking_part(round).items():
            stage.enter(c)
            world.spill.use(received[c].theta, *clients[c].arrays())
            room = world.reduce.room(c)
            clients[c], update = client.train(clients[c], received[c], round, logs[c], room)
            values = update.values if room else world.spill.keep(world.reduce.rounded(update.values))
            updates[c] = replace(update, mask=world.spill.keep_mask(update.mask), values=values)
    world.meter.control += control_bytes(world.ranks)
    clock.lap("local", now)
    return replace(state, clients=clients), updates


def _aggregate(
    world: World, state: State, updates: Mapping[int, Update], round: int, clock: Clock
) -> tuple[State, Selection | None]:
    """Uplink: heads first, since the weights depend on them; then the values, merged as they arrive."""
    now = time.perf_counter()
    outgoing = {
        c: (_update_head(world, round, c, state.clients[c].history, u), state.clients[c].history.mask)
        for c, u in updates.items()
    }
    heads = world.reduce.heads(Kind.UPDATE, round, outgoing, _known(world, state, round), since=clock.start)
    masks = {c: mask_of(head) for c, head in heads.items()} or {c: u.mask for c, u in updates.items()}
    selection = None
    with agree(world.ranks, "weighting the updates", world.patience):
        if world.ranks.is_server:
            selection = select(heads, world.learner.prunable, world.config)
    world.meter.control += control_bytes(world.ranks)
    server = state.server
    theta = server.theta if server is not None else None
    weights = dict(zip(selection.merged, selection.weights.weight, strict=True)) if selection is not None else {}
    previous = theta.copy() if theta is not None and world.reduce.keeps_references else None
    values = Shelf(world.spill, {c: u.values for c, u in updates.items()})
    references = Shelf(world.spill, _uplink_references(state, updates))
    world.reduce.merge(
        values, masks, heads, weights, theta, skip_pruned=world.method.sparsity.skips, references=references
    )
    if server is not None and selection is not None:
        buffers = mean_buffers([heads[c] for c in selection.merged], selection.weights.weight)
        state = replace(state, server=replace(server, buffers=buffers, previous=previous))
    after = {c: h.pruned(masks[c]) for c, h in _histories(world, state, round).items()}
    clock.lap("uplink", now)
    return state.with_histories(after), selection


def _uplink_references(state: State, updates: Mapping[int, Update]) -> dict[int, NDArray[np.float32]]:
    """Return what lossless updates are coded against: what was received, where the update keeps nothing else."""
    return {
        c: s.reference
        for c, s in state.clients.items()
        if c in updates and s.reference is not None and not updates[c].mask.difference(s.history.mask).count()
    }


def _update_head(world: World, round: int, client: int, history: MaskHistory, update: Update) -> Head:
    world.spill.use(update.values, update.mask.words)
    named = {"divergence": update.divergence, "images": float(update.images), "norm": update.norm}
    return Head(
        kind=Kind.UPDATE,
        round=round,
        client=client,
        base_epoch=history.epoch,
        epoch=history.pruned(update.mask).epoch,
        mask=update.mask,
        buffers=update.buffers,
        scalars=np.array([named[name] for name in SCALARS]),
        values_checksum=world.reduce.checksum(client, update.values),
        segments=world.reduce.segments(update.mask),
        coding=world.reduce.coding,
    )


def _known(world: World, state: State, round: int) -> dict[int, Known]:
    return {c: Known(h.mask, h.epoch) for c, h in _histories(world, state, round).items()}


def _histories(world: World, state: State, round: int) -> dict[int, MaskHistory]:
    """Return the mask histories of the round's participants that this rank knows."""
    known = state.histories()
    return {c: known[c] for c in world.participants(round) if c in known}


def _note_absent(world: World, state: State, round: int, logs: Mapping[int, Measurements]) -> None:
    """Note of the hosted clients that sit this round out what stays true of them."""
    for c in set(world.clients) - set(world.participants(round)):
        kept = state.clients[c].history.mask.to_bool()
        logs[c].values["density"] = density(kept, world.learner.prunable)


__all__ = [
    "CLIENT_FIELDS", "Clock", "Direction", "RoundResult", "State", "World", "first_state", "gather_logs", "is_due",
    "run_round",
]  # fmt: skip
