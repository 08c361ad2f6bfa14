"""One round, one way: what all ranks run together, and what comes out of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm import (
    Address,
    Direction,
    Known,
    Meter,
    Patience,
    Ranks,
    Reduce,
    Scatter,
    Traffic,
    agree,
    control_bytes,
    gather_rows,
)
from fedmpi.config import RunConfig
from fedmpi.federated.client import Client, ClientState, Received, Update, scores
from fedmpi.federated.composition import Method, build
from fedmpi.federated.history import MaskHistory
from fedmpi.federated.learner import Learner
from fedmpi.federated.measurements import Measurements
from fedmpi.federated.server import SCALARS, Selection, ServerState, mask_of, mean_buffers, select
from fedmpi.sparse import Flag, Head, Kind, Mask, values_checksum

CLIENT_FIELDS = (
    *(f"seconds_{n}" for n in ("train", "cluster", "probe", "prune", "encode", "evaluate")),
    *(f"loss_{n}" for n in ("total", "intra", "inter", "kl")),
    *("clusters", "outliers", "batches", "idle_epochs", "train_images", "bad_images"),
    *("kl_divergence", "norm", "density", "crr_decision", "crr_before", "crr_after", "crr_received"),
    *("map", "rank1", "rank5", "rank10", "queries_skipped"),
    *("global_map", "global_rank1", "global_rank5", "global_rank10", "global_queries_skipped"),
)
"""What every client reports to the server each round, float64 each; no part of the method's traffic."""


@dataclass(frozen=True)
class World:
    """What does not change during a run, on one rank.

    ``clients`` are the hosted ones. Every rank has a ``learner``: a server that hosts nobody takes the layout and the
    untrained model from it.
    """

    config: RunConfig
    ranks: Ranks
    patience: Patience
    meter: Meter
    learner: Learner
    clients: Mapping[int, Client]
    scatter: Scatter
    reduce: Reduce

    @cached_property
    def method(self) -> Method:
        """The run's method."""
        return build(self.config)


@dataclass(frozen=True)
class State:
    """What goes from round to round, on one rank: its clients' states and, on the server, the global model."""

    clients: Mapping[int, ClientState]
    server: ServerState | None

    def histories(self) -> Mapping[int, MaskHistory]:
        """Return the mask histories that this rank knows: all on the server, the hosted ones elsewhere."""
        return self.server.histories if self.server is not None else {c: s.history for c, s in self.clients.items()}

    def with_histories(self, histories: Mapping[int, MaskHistory]) -> "State":
        """Return this state with (some) histories replaced, at both ends alike."""
        clients = {c: replace(s, history=histories.get(c, s.history)) for c, s in self.clients.items()}
        server = self.server and replace(self.server, histories={**self.server.histories, **histories})
        return State(clients, server)


@dataclass(frozen=True)
class RoundResult:
    """What the server knows of a finished round; ``clients`` holds ``float64[clients]`` by name."""

    round: int
    started: float
    seconds: dict[str, float]
    clients: dict[str, NDArray[np.float64]]
    messages: list[Traffic]
    control: int
    selection: Selection
    masks: Mapping[int, Mask]
    evaluated: bool


@dataclass
class Clock:
    """Wall seconds of the stages of a round on this rank."""

    start: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str, since: float) -> float:
        """Add the time since ``since`` to ``name`` and return the time now."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - since
        return now


def first_state(world: World) -> State:
    """Return the state before round 0: the untrained model, every mask full."""
    theta, buffers = world.learner.read()
    dense = MaskHistory.dense(world.learner.layout.size)
    clients = {c: ClientState(dense) for c in world.ranks.hosted}
    server = ServerState(theta, buffers, dict.fromkeys(world.ranks.clients, dense)) if world.ranks.is_server else None
    return State(clients, server)


def run_round(world: World, state: State, round: int) -> tuple[State, RoundResult | None]:
    """*Collective*. Run one round; return the next state and, on the server, what happened.

    downlink -> stage 2 of CRR -> local training, pruning -> uplink, merge -> evaluation when due -> measurements
    """
    clock, started = Clock(), time.time()
    logs = {c: Measurements() for c in world.ranks.hosted}
    state, received = _deliver(world, state, round, logs, clock)
    state, updates = _train(world, state, received, round, logs, clock)
    state, selection, masks = _aggregate(world, state, updates, round, clock)
    evaluated = is_due(world.config, round)
    if evaluated:
        _evaluate(world, state, round, logs, clock)
    clock.lap("round", clock.start)
    rows = gather_logs(world, logs)
    if rows is None or selection is None:
        return state, None
    messages, control = world.meter.take()
    return state, RoundResult(round, started, clock.seconds, rows, messages, control, selection, masks, evaluated)


def is_due(config: RunConfig, round: int) -> bool:
    """Return whether the models are evaluated after ``round``: every so many rounds, and always after the last."""
    every = config.evaluation.every
    return round == config.federation.rounds - 1 or (every > 0 and (round + 1) % every == 0)


def gather_logs(world: World, logs: Mapping[int, Measurements]) -> dict[str, NDArray[np.float64]] | None:
    """*Collective*. Return the measurements of all clients by name on the server, None elsewhere."""
    rows = {c: np.array([log.values.get(name, np.nan) for name in CLIENT_FIELDS]) for c, log in logs.items()}
    table = gather_rows(world.ranks, rows, len(CLIENT_FIELDS), world.patience, world.meter)
    return None if table is None else {name: table[:, i] for i, name in enumerate(CLIENT_FIELDS)}


def _deliver(
    world: World, state: State, round: int, logs: Mapping[int, Measurements], clock: Clock
) -> tuple[State, dict[int, Received]]:
    """Downlink, and CRR's stage 2: the clients judge what they got, and fetch what they need back."""
    addresses = {c: Address(h.mask, h.epoch) for c, h in state.histories().items()}
    now = clock.start
    parcels = world.scatter(Kind.MODEL, round, addresses, _source(state), since=clock.start)
    now = clock.lap("downlink", now)
    received: dict[int, Received] = {}
    clients = dict(state.clients)
    with agree(world.ranks, "judging the received model", world.patience) as stage:
        for c, client in world.clients.items():
            stage.enter(c)
            clients[c], received[c] = client.check(clients[c], parcels[c], logs[c])
    world.meter.control += control_bytes(world.ranks)
    state = replace(state, clients=clients)
    now = clock.lap("local", now)
    if world.method.sparsity.recovers:
        state, received = _recover(world, state, received, round, clock)
        clock.lap("downlink", now)
    return state, received


def _recover(
    world: World, state: State, received: dict[int, Received], round: int, clock: Clock
) -> tuple[State, dict[int, Received]]:
    """Each client tells the server whether it recovers; those that do get the lost positions from the global model."""
    requests = {
        c: (_request(world, round, c, state.clients[c].history, recover=r.recover), state.clients[c].history.mask)
        for c, r in received.items()
    }
    heads = world.reduce.heads(Kind.REQUEST, round, requests, _known(state), since=clock.start)
    recovering = {c for c, head in heads.items() if head.flags & Flag.RECOVER} | {
        c for c, r in received.items() if r.recover
    }
    histories = state.histories()
    addresses = {c: Address(histories[c].lost, histories[c].epoch) for c in recovering}
    if addresses:
        parcels = world.scatter(Kind.RECOVERED, round, addresses, _source(state), since=clock.start)
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
        segments=world.reduce.segments,
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
        for c, client in world.clients.items():
            stage.enter(c)
            clients[c], updates[c] = client.train(clients[c], received[c], round, logs[c])
    world.meter.control += control_bytes(world.ranks)
    clock.lap("local", now)
    return replace(state, clients=clients), updates


def _aggregate(
    world: World, state: State, updates: Mapping[int, Update], round: int, clock: Clock
) -> tuple[State, Selection | None, dict[int, Mask]]:
    """Uplink: heads first, since the weights depend on them; then the values, merged as they arrive."""
    now = time.perf_counter()
    outgoing = {
        c: (_update_head(world, round, c, state.clients[c].history, u), state.clients[c].history.mask)
        for c, u in updates.items()
    }
    heads = world.reduce.heads(Kind.UPDATE, round, outgoing, _known(state), since=clock.start)
    masks = {c: mask_of(head) for c, head in heads.items()} or {c: u.mask for c, u in updates.items()}
    selection = None
    with agree(world.ranks, "weighting the updates", world.patience):
        if world.ranks.is_server:
            selection = select(heads, world.learner.prunable, world.config)
    world.meter.control += control_bytes(world.ranks)
    server = state.server
    theta = server.theta if server is not None else None
    weights = dict(zip(selection.merged, selection.weights.weight, strict=True)) if selection is not None else {}
    values = {c: u.values for c, u in updates.items()}
    clock.seconds["merge"] = world.reduce.merge(
        values, masks, heads, weights, theta, skip_pruned=world.method.sparsity.skips
    )
    if server is not None and selection is not None:
        buffers = mean_buffers([heads[c] for c in selection.merged], selection.weights.weight)
        state = replace(state, server=replace(server, buffers=buffers))
    after = {c: h.pruned(masks[c]) for c, h in state.histories().items()}
    clock.lap("uplink", now)
    return state.with_histories(after), selection, masks


def _update_head(world: World, round: int, client: int, history: MaskHistory, update: Update) -> Head:
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
        values_checksum=values_checksum(update.values),
        segments=world.reduce.segments,
    )


def _evaluate(world: World, state: State, round: int, logs: Mapping[int, Measurements], clock: Clock) -> None:
    """Send the whole global model round and let every client score it with its own mask, and as it is."""
    now = time.perf_counter()
    full = Mask.full(world.learner.layout.size)
    addresses = {c: Address(full, 0) for c in state.histories()}
    parcels = world.scatter(Kind.EVALUATION, round, addresses, _source(state), since=clock.start)
    with agree(world.ranks, "evaluation", world.patience) as stage:
        for c, client in world.clients.items():
            stage.enter(c)
            with logs[c].time("evaluate"):
                parcel, mask = parcels[c], state.clients[c].history.mask
                personal = client.evaluate(parcel.values * mask.to_bool(), parcel.buffers)
                logs[c].values |= scores(personal)
                if world.config.evaluation.global_model:
                    whole = personal if mask.is_full else client.evaluate(parcel.values, parcel.buffers)
                    logs[c].values |= scores(whole, "global_")
    world.meter.control += control_bytes(world.ranks)
    clock.lap("evaluate", now)


def _source(state: State) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    return (state.server.theta, state.server.buffers) if state.server is not None else None


def _known(state: State) -> dict[int, Known]:
    return {c: Known(h.mask, h.epoch) for c, h in state.histories().items()}


__all__ = ["CLIENT_FIELDS", "Direction", "RoundResult", "State", "World", "first_state", "run_round"]
