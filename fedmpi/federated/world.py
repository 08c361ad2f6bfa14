"""What a round works with: what stays the same during a run, what goes from round to round, and what comes out."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm import Meter, Patience, Ranks, Reduce, Scatter, Traffic
from fedmpi.config import RunConfig
from fedmpi.federated.client import Client, ClientState
from fedmpi.federated.composition import Method, build
from fedmpi.federated.history import MaskHistory
from fedmpi.federated.learner import Learner
from fedmpi.federated.participation import participants
from fedmpi.federated.server import Selection, ServerState
from fedmpi.federated.spill import Spill
from fedmpi.sparse import Mask


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

    @property
    def spill(self) -> Spill:
        """The room for what the hosted clients hold."""
        return self.learner.spill

    @cached_property
    def method(self) -> Method:
        """The run's method."""
        return build(self.config)

    def participants(self, round: int) -> tuple[int, ...]:
        """Return the clients that take part in a round, the same on every rank; in those before round 0, all."""
        clients = self.ranks.clients
        return participants(self.config, len(clients), round) if round >= 0 else tuple(clients)

    def taking_part(self, round: int) -> dict[int, Client]:
        """Return the hosted clients that take part in a round."""
        return {c: self.clients[c] for c in self.participants(round) if c in self.clients}


@dataclass(frozen=True)
class State:
    """What goes from round to round, on one rank: its clients' states and, on the server, the global model."""

    clients: Mapping[int, ClientState]
    server: ServerState | None

    def histories(self) -> Mapping[int, MaskHistory]:
        """Return the mask histories that this rank knows: all on the server, the hosted ones elsewhere."""
        return self.server.histories if self.server is not None else {c: s.history for c, s in self.clients.items()}

    def references(self) -> Mapping[int, NDArray[np.float32] | None]:
        """Return what each client received last, if both ends remember it: ``float32[N]``, valid at its mask."""
        if self.server is not None:
            return dict.fromkeys(self.server.histories, self.server.previous)
        return {c: s.reference for c, s in self.clients.items()}

    def with_histories(self, histories: Mapping[int, MaskHistory]) -> "State":
        """Return this state with (some) histories replaced, at both ends alike."""
        clients = {c: replace(s, history=histories.get(c, s.history)) for c, s in self.clients.items()}
        server = self.server and replace(self.server, histories={**self.server.histories, **histories})
        return State(clients, server)


def stowed(spill: Spill, state: State) -> State:
    """Return the same state, held in the room for it; nothing of it is needed for now. *Not collective.*"""
    if not spill.limit:
        return state
    known: dict[int, tuple[Mask, Mask]] = {}  # a mask that several histories share stays one

    def mask(old: Mask) -> Mask:
        if id(old) not in known:
            known[id(old)] = old, spill.keep_mask(old)
        return known[id(old)][1]

    def history(old: MaskHistory) -> MaskHistory:
        return replace(old, mask=mask(old.mask), good=mask(old.good))

    def client(old: ClientState) -> ClientState:
        model = old.model and (spill.keep(old.model[0]), spill.keep(old.model[1]))
        reference = None if old.reference is None else spill.keep(old.reference)
        return replace(old, history=history(old.history), model=model, reference=reference)

    server = state.server
    if server is not None:
        server = replace(server, histories={c: history(h) for c, h in server.histories.items()})
    after = State({c: client(s) for c, s in state.clients.items()}, server)
    spill.rest()
    return after


def housed(world: World, state: State) -> State:
    """Return the same state, the global model in the memory that clients share, if there is any. *Not collective.*

    It is merged there, and gone with `Scatter.free`.
    """
    server = state.server
    return state if server is None else replace(state, server=replace(server, theta=world.scatter.home(server.theta)))


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
    participants: tuple[int, ...]


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
    known = theta.copy() if world.reduce.keeps_references else None  # everybody built the same untrained model
    clients = {c: ClientState(dense, reference=known) for c in world.ranks.hosted}
    histories = dict.fromkeys(world.ranks.clients, dense)
    server = ServerState(theta, buffers, histories, known) if world.ranks.is_server else None
    return stowed(world.spill, State(clients, server))
