"""The loop over rounds: joins ranks, clients, record and console into one run."""

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import torch
from mpi4py import MPI

import fedmpi
from fedmpi import logbook, run_folder, snapshot
from fedmpi.briefing import briefing, provenance
from fedmpi.comm import (
    Meter,
    Patience,
    Ranks,
    Reduce,
    Scatter,
    agree,
    check_one_world,
    check_same,
    find_nodes,
    gather_rows,
    plan_downlink,
    plan_uplink,
    plan_wire,
    same_number,
    same_text,
)
from fedmpi.comm.device_memory import plan_arrival
from fedmpi.comm.devices import Seat, check_sharing, choose_device, node_place, seats
from fedmpi.config import RunConfig
from fedmpi.console import CRR_NAMES, View
from fedmpi.federated.alone import load_data
from fedmpi.federated.client import Client, scores
from fedmpi.federated.learner import Learner, deterministic
from fedmpi.federated.measurements import Measurements
from fedmpi.federated.round import RoundResult, State, World, first_state, gather_logs, run_round
from fedmpi.federated.server import SCALARS
from fedmpi.federated.world import housed
from fedmpi.journal import Journal, Scores
from fedmpi.logbook import Totals
from fedmpi.pruning import Decision
from fedmpi.reid.datasets import client_names
from fedmpi.resume import Start, choose
from fedmpi.stopping import Stopper


def train(
    comm: MPI.Intracomm,
    config: RunConfig,
    out: Path | None,
    view: View,
    *,
    resume: str | None = None,
    stopper: Stopper | None = None,
) -> dict[str, object] | None:
    """*Collective*. Run a whole federated training; return the summary on rank 0, None elsewhere.

    The order of a run::

        check that all ranks mean the same world; place clients; find the run to resume; choose devices
        load the hosted clients' data; build the untrained model
        rank 0: make the run folder, open the run file
        evaluate the untrained model on every client, or restore the checkpoint
        for each round: run_round; rank 0: commit it to the run file, print its line; write a checkpoint when due
        rank 0: write the final models and summary.json, remove the checkpoints

    Parameters
    ----------
    resume
        A run folder, or ``auto``: see `fedmpi.resume`. A finished run is left as it is.
    stopper
        Says when to stop early; by default never.

    Raises
    ------
    Stopped
        On every rank, when the stopper wanted it on one.
    FedmpiError
        Expected failures, on every rank: the rank that failed raises its own error, the others RankFailure.
    """
    check_one_world(comm.size)
    digests = {"configuration": config.digest(), "fedmpi": fedmpi.__version__, "torch": torch.__version__}
    check_same(comm, **digests, resume=str(resume))
    begun = time.perf_counter()
    stopper = stopper or Stopper(math.inf, environment={})
    names = client_names(config.data, config.run.seed)
    ranks = Ranks.create(comm, len(names))
    c = config.comm
    patience = Patience(
        1e-6 * c.poll_min_us, 1e-6 * c.poll_max_us, c.deadline_s, view.waiting, interrupt=stopper.interrupt
    )
    try:
        start = choose(ranks, patience, config, out, resume)
        if start.finished:
            return _say_finished(start, view)
        with deterministic(config):
            world, placed = _set_up(ranks, patience, config, stopper)
            summary = _run(world, names, placed, out, start, view, stopper, begun)
        world.scatter.free()
        world.reduce.free()
        world.learner.free()
        return summary
    finally:
        ranks.free()


def _say_finished(start: Start, view: View) -> dict[str, object] | None:
    """Return the summary of a run that was finished before; *not collective*."""
    if start.folder is None:
        return None
    view.nothing_to_do(start.folder.path, start.rounds)
    summary: dict[str, object] = json.loads(start.folder.summary.read_text())
    return summary


def _set_up(ranks: Ranks, patience: Patience, config: RunConfig, stopper: Stopper) -> tuple[World, list[Seat]]:
    """*Collective*. Choose devices, load data and build the plans."""
    meter = Meter()
    place, _ = node_place(ranks)
    with agree(ranks, "choosing devices", patience):
        device = choose_device(config.compute.device, ranks, place)
        arrival = plan_arrival(ranks, device, wanted=config.compute.staging and config.compute.direct)
    placed = seats(ranks, device)
    with agree(ranks, "loading data", patience) as stage:
        learner = Learner(config, device, stopper.interrupt)
        clients = {}
        for index in ranks.hosted:
            stage.enter(index)
            clients[index] = Client(index, load_data(config, index), learner)
    w = config.wire
    wire = plan_wire(ranks, w.values, w.prefer, w.bandwidth_mb_s and 1e6 * w.bandwidth_mb_s, patience)
    megabytes = config.comm.segment_mb
    segment_bytes = None if megabytes is None else int(1e6 * megabytes)
    layout, n = learner.layout, len(SCALARS)
    shared = plan_downlink(ranks, layout.size, config.comm.downlink)
    scatter = Scatter(
        ranks,
        layout,
        segment_bytes=segment_bytes,
        patience=patience,
        meter=meter,
        wire=wire,
        shared=shared,
        room=learner.spill.empty,
        device_room=arrival,
    )
    laid = plan_uplink(ranks, layout.size, config.comm.uplink)
    reduce = Reduce(
        ranks,
        layout,
        segment_bytes=segment_bytes,
        max_scalars=n,
        patience=patience,
        meter=meter,
        wire=wire,
        shared=laid,
        sharded=config.comm.uplink == "sharded",
        nodes=find_nodes(ranks) if config.comm.uplink == "hierarchical" else None,
    )
    return World(config, ranks, patience, meter, learner, clients, scatter, reduce), placed


def _run(
    world: World,
    names: tuple[str, ...],
    placed: list[Seat],
    out: Path | None,
    start: Start,
    view: View,
    stopper: Stopper,
    begun: float,
) -> dict[str, object] | None:
    """*Collective*. Evaluate, train round by round, and write down what happened."""
    config, ranks = world.config, world.ranks
    shared = check_sharing(placed, exclusive=config.compute.require_exclusive_gpu)
    journal: Journal | None = None
    with agree(ranks, "making the run folder", world.patience):
        if ranks.is_server:
            journal = Journal.open(config, names, world.learner.layout, provenance(world, placed), out, start)
            warnings = [*config.warnings(), *([shared] if shared else [])]
            title = f"fedmpi {fedmpi.__version__}: {config.run.name}"
            view.started(title, briefing(world, journal.folder), placed, names, warnings)
    with journal.writer if journal is not None else nullcontext():
        folder = same_text(ranks, str(journal.folder.path) if journal is not None else None, world.patience)
        stopper.begin(folder, start.rounds, config.federation.rounds)
        state = _rounds(world, journal, start, view, stopper)
        summary = _finish(world, journal, state, start, begun)
    if journal is not None and summary is not None:
        journal.forget_checkpoints()
        view.finished(summary, journal.folder.path)
    return summary


def _rounds(world: World, journal: Journal | None, start: Start, view: View, stopper: Stopper) -> State:
    """*Collective*. Run all rounds that are left; return the last state."""
    rounds = world.config.federation.rounds
    state = _first_state(world, journal, start)
    if journal is not None:
        view.baseline(logbook.mean(journal.before["map"]), logbook.mean(journal.before["rank1"]), rounds)
        if start.resumed:
            view.resumed(start.rounds)
    wish = same_number(world.ranks, stopper.wish(), world.patience) if start.rounds < rounds else 0
    saved = start.rounds
    for number in range(start.rounds, rounds):
        if wish:
            raise stopper.stopped(wish)
        view.begin(number)
        state, result = run_round(world, state, number)
        with agree(world.ranks, "recording the round", world.patience):
            if result is not None and journal is not None:
                this = journal.commit(result)
                view.round(*_line(result, this, journal.totals))
        wish = same_number(world.ranks, stopper.finished_round(), world.patience)
        if wish or number + 1 == rounds or number + 1 - saved >= world.config.checkpoint.every:
            saved = _save(world, journal, state, number + 1)
    return state


def _first_state(world: World, journal: Journal | None, start: Start) -> State:
    """*Collective*. Return the untrained state, with its scores recorded, or that of the checkpoint."""
    if start.rounds:
        return housed(world, snapshot.give(world, start.checkpoint))
    before = _baseline(world)
    with agree(world.ranks, "recording the untrained model", world.patience):
        if journal is not None:
            journal.baseline(before)
    return housed(world, first_state(world))


def _save(world: World, journal: Journal | None, state: State, rounds: int) -> int:
    """*Collective*. Write a checkpoint after ``rounds`` rounds, and return that number."""
    arrays = snapshot.take(world, state)
    with agree(world.ranks, "writing the checkpoint", world.patience):
        if journal is not None and arrays is not None:
            journal.save(rounds, arrays, snapshot.facts(world.config))
    return rounds


def _baseline(world: World) -> Scores:
    """*Collective*. Score the untrained model, which every rank builds itself: nothing travels but the scores."""
    theta, buffers = world.learner.read()
    logs = {c: Measurements() for c in world.ranks.hosted}
    with agree(world.ranks, "evaluating the untrained model", world.patience) as stage:
        for c, client in world.clients.items():
            stage.enter(c)
            logs[c].values |= scores(client.evaluate(theta, buffers))
    table = gather_logs(world, logs)
    world.meter.take()
    return table or {}


def _line(result: RoundResult, this: Totals, totals: Totals) -> tuple[dict[str, float], dict[str, int]]:
    """Return what the console shows of a round."""
    means = {name: logbook.mean(result.clients[key]) for name, key in (
        ("loss", "loss_total"), ("kl", "loss_kl"), ("map", "map"), ("rank1", "rank1"), ("density", "density"),
    )}  # fmt: skip
    row = {**means, "up": this.up, "down": this.down, "saved": totals.saved, "seconds": result.seconds["round"]}
    decided = result.clients["crr_decision"]
    return row, {name: int((decided == Decision[name.upper()]).sum()) for name in CRR_NAMES}


def _finish(
    world: World, journal: Journal | None, state: State, start: Start, begun: float
) -> dict[str, object] | None:
    """*Collective*. Write the final models and the summary; the summary comes last and says that the run is whole."""
    memory = psutil.Process().memory_info()
    peak = _peak_rss()
    rows = gather_rows(world.ranks, {c: np.array([peak]) for c in world.ranks.hosted}, 1, world.patience, world.meter)
    result = None
    with agree(world.ranks, "writing the results", world.patience):
        if journal is not None and rows is not None:
            journal.save_models(state)
            extra = {
                "seconds": time.perf_counter() - begun,
                "peak_rss_bytes": int(max(peak, rows.max(), memory.rss)),
                "rounds": world.config.federation.rounds,
                "resumed_after": start.rounds if start.resumed else None,
                "ranks": world.ranks.size,
                "seed": world.config.run.seed,
                "config_digest": world.config.digest(),
                "global_sha256": logbook.sha256(journal.folder.global_model),
            }
            result = logbook.summary(journal.names, journal.before, journal.last, journal.totals, extra)
            run_folder.write_json(journal.folder.summary, result)
    return result


def _peak_rss() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    import resource  # noqa: PLC0415 - Unix only, as MPI clusters are

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
