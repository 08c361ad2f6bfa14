"""What is measured in a round and brought to the server; no part of any method's traffic."""

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm import Address, agree, control_bytes, gather_rows
from fedmpi.comm.parcels import Parcel
from fedmpi.config import RunConfig
from fedmpi.federated.client import scores
from fedmpi.federated.measurements import Measurements
from fedmpi.federated.world import Clock, State, World
from fedmpi.sparse import Kind, Mask

CLIENT_FIELDS = (
    *(f"seconds_{n}" for n in ("train", "cluster", "probe", "prune", "encode", "evaluate")),
    *(f"loss_{n}" for n in ("total", "intra", "inter", "kl")),
    *("clusters", "outliers", "batches", "idle_epochs", "train_images", "bad_images"),
    *("kl_divergence", "norm", "density", "crr_decision", "crr_before", "crr_after", "crr_received"),
    *("map", "rank1", "rank5", "rank10", "queries_skipped"),
    *("global_map", "global_rank1", "global_rank5", "global_rank10", "global_queries_skipped"),
)
"""What every client reports to the server each round, float64 each; no part of the method's traffic."""


def is_due(config: RunConfig, round: int) -> bool:
    """Return whether the models are evaluated after ``round``: every so many rounds, and always after the last."""
    every = config.evaluation.every
    return round == config.federation.rounds - 1 or (every > 0 and (round + 1) % every == 0)


def gather_logs(world: World, logs: Mapping[int, Measurements]) -> dict[str, NDArray[np.float64]] | None:
    """*Collective*. Return the measurements of all clients by name on the server, None elsewhere."""
    rows = {c: np.array([log.values.get(name, np.nan) for name in CLIENT_FIELDS]) for c, log in logs.items()}
    table = gather_rows(world.ranks, rows, len(CLIENT_FIELDS), world.patience, world.meter)
    return None if table is None else {name: table[:, i] for i, name in enumerate(CLIENT_FIELDS)}


def evaluate(world: World, state: State, round: int, logs: Mapping[int, Measurements], clock: Clock) -> None:
    """*Collective*. Send the whole global model round and let every client score it with its own mask, and as it is.

    One client per rank at a time, so that no rank holds more than one whole model for it.
    """
    now = time.perf_counter()
    full, known = Mask.full(world.learner.layout.size), state.histories()
    for wave in world.ranks.waves():
        addresses = {c: Address(full, 0) for c in wave if c in known}
        parcels = world.scatter(Kind.EVALUATION, round, addresses, source(state), since=clock.start)
        with agree(world.ranks, "evaluation", world.patience) as stage:
            for c in sorted(parcels):
                stage.enter(c)
                world.spill.use(parcels[c].values, *state.clients[c].arrays())
                _score(world, c, state.clients[c].history.mask, parcels[c], logs[c])
        world.meter.control += control_bytes(world.ranks)
    clock.lap("evaluate", now)


def _score(world: World, c: int, mask: Mask, parcel: Parcel, log: Measurements) -> None:
    """Score the personalized and the global model on a hosted client's test images."""
    client = world.clients[c]
    with log.time("evaluate"):
        theta = parcel.dense()
        personal = client.evaluate(theta * mask.to_bool(), parcel.buffers)
        log.values |= scores(personal)
        if world.config.evaluation.global_model:
            whole = personal if mask.is_full else client.evaluate(theta, parcel.buffers)
            log.values |= scores(whole, "global_")


def source(state: State) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return the global model (theta, buffers) on the server, None elsewhere."""
    return (state.server.theta, state.server.buffers) if state.server is not None else None
