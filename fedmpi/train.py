"""The loop over rounds: joins ranks, clients, record and console into one run."""

import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import safetensors.torch
import torch
from mpi4py import MPI
from numpy.typing import NDArray

import fedmpi
from fedmpi import logbook, run_folder
from fedmpi.comm import (
    Meter,
    Patience,
    Ranks,
    Reduce,
    Scatter,
    agree,
    check_one_world,
    check_same,
    gather_rows,
    plan_wire,
)
from fedmpi.comm.devices import Seat, check_sharing, choose_device, node_place, seats
from fedmpi.config import FEDKLPR, SWITCHES, RunConfig, to_yaml
from fedmpi.console import CRR_NAMES, View
from fedmpi.federated.alone import load_data
from fedmpi.federated.client import Client, scores
from fedmpi.federated.learner import Learner, deterministic
from fedmpi.federated.measurements import Measurements
from fedmpi.federated.round import RoundResult, State, World, first_state, gather_logs, run_round
from fedmpi.federated.server import SCALARS
from fedmpi.logbook import Totals
from fedmpi.pruning import Decision
from fedmpi.record import RunWriter, collect
from fedmpi.record.schema import variables
from fedmpi.reid.datasets import client_names
from fedmpi.reid.protocol import STANDARD, Protocol
from fedmpi.run_folder import RunFolder
from fedmpi.sparse import kernels


def train(comm: MPI.Intracomm, config: RunConfig, out: Path | None, view: View) -> dict[str, object] | None:
    """*Collective*. Run a whole federated training; return the summary on rank 0, None elsewhere.

    The order of a run::

        check that all ranks mean the same world; place clients; choose devices
        load the hosted clients' data; build the untrained model
        rank 0: make the run folder, open the run file
        evaluate the untrained model on every client
        for each round: run_round; rank 0: commit it to the run file, print its line
        rank 0: write the final models and summary.json

    Raises
    ------
    FedmpiError
        Expected failures, on every rank: the rank that failed raises its own error, the others RankFailure.
    """
    check_one_world(comm.size)
    check_same(comm, configuration=config.digest(), fedmpi=fedmpi.__version__, torch=torch.__version__)
    start = time.perf_counter()
    with deterministic(config):
        world, names, placed = _set_up(comm, config, view)
        try:
            return _run(world, names, placed, out, view, start)
        finally:
            world.ranks.free()


def _set_up(comm: MPI.Intracomm, config: RunConfig, view: View) -> tuple[World, tuple[str, ...], list[Seat]]:
    """*Collective*. Place the clients, choose devices, load data and build the plans."""
    names = client_names(config.data, config.run.seed)
    ranks, meter = Ranks.create(comm, len(names)), Meter()
    c = config.comm
    patience = Patience(1e-6 * c.poll_min_us, 1e-6 * c.poll_max_us, c.deadline_s, view.waiting)
    place, _ = node_place(ranks)
    with agree(ranks, "choosing devices", patience):
        device = choose_device(config.compute.device, ranks, place)
    placed = seats(ranks, device)
    with agree(ranks, "loading data", patience) as stage:
        learner = Learner(config, device)
        clients = {}
        for index in ranks.hosted:
            stage.enter(index)
            clients[index] = Client(index, load_data(config, index), learner)
    w = config.wire
    wire = plan_wire(ranks, w.values, w.prefer, w.bandwidth_mb_s and 1e6 * w.bandwidth_mb_s, patience)
    segment_bytes = int(c.segment_mb * 1e6)
    layout, n = learner.layout, len(SCALARS)
    scatter = Scatter(ranks, layout, segment_bytes=segment_bytes, patience=patience, meter=meter, wire=wire)
    reduce = Reduce(
        ranks, layout, segment_bytes=segment_bytes, max_scalars=n, patience=patience, meter=meter, wire=wire
    )
    return World(config, ranks, patience, meter, learner, clients, scatter, reduce), names, placed


def _run(
    world: World, names: tuple[str, ...], placed: list[Seat], out: Path | None, view: View, start: float
) -> dict[str, object] | None:
    """*Collective*. Evaluate, train round by round, and write down what happened."""
    config, ranks = world.config, world.ranks
    shared = check_sharing(placed, exclusive=config.compute.require_exclusive_gpu)
    folder: RunFolder | None = None
    writer: RunWriter | None = None
    with agree(ranks, "making the run folder", world.patience):
        if ranks.is_server:
            folder = run_folder.create(config.run.name, out)
            run_folder.write_whole(folder.config, to_yaml(config).encode())
            layers = [t.name for t in world.learner.layout.tensors]
            writer = RunWriter.create(
                folder.record, names, layers, provenance(world, placed), rounds=config.federation.rounds
            )
            warnings = [*config.warnings(), *([shared] if shared else [])]
            view.started(
                f"fedmpi {fedmpi.__version__}: {config.run.name}", facts(world, folder), placed, names, warnings
            )
    if folder is None or writer is None:
        _rounds(world, None, view)
        return _finish(world, None, start)
    with writer:
        outcome = _rounds(world, writer, view)
        summary = _finish(world, (folder, names, *outcome), start)
    if summary is not None:
        view.finished(summary, folder.path)
    return summary


Scores = dict[str, NDArray[np.float64]]


def _rounds(world: World, writer: RunWriter | None, view: View) -> tuple[State, Scores, Scores, Totals]:
    """*Collective*. Run all rounds; return the last state and, on the server, scores before and after, and traffic."""
    config, totals = world.config, Totals()
    state = first_state(world)
    before = _baseline(world)
    last: Scores = {}
    if writer is not None:
        writer.baseline({name: before[name] for name in ("map", "rank1", "rank5", "rank10")})
        view.baseline(logbook.mean(before["map"]), logbook.mean(before["rank1"]), config.federation.rounds)
    for number in range(config.federation.rounds):
        view.begin(number)
        state, result = run_round(world, state, number)
        with agree(world.ranks, "recording the round", world.patience):
            if result is not None and writer is not None:
                _commit(writer, world, result)
                view.round(*_line(result, totals.add(result.messages), totals))
                last = result.clients
    return state, before, last, totals


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


def _commit(writer: RunWriter, world: World, result: RoundResult) -> None:
    layout = world.learner.layout
    writer.commit(
        result.round,
        logbook.round_variables(result),
        logbook.client_variables(result, list(variables("clients"))),
        logbook.layer_variables(layout, result.masks),
        logbook.message_table(result.messages, result.started),
    )


def _line(result: RoundResult, this: Totals, totals: Totals) -> tuple[dict[str, float], dict[str, int]]:
    """Return what the console shows of a round."""
    means = {name: logbook.mean(result.clients[key]) for name, key in (
        ("loss", "loss_total"), ("kl", "loss_kl"), ("map", "map"), ("rank1", "rank1"), ("density", "density"),
    )}  # fmt: skip
    row = {**means, "up": this.up, "down": this.down, "saved": totals.saved, "seconds": result.seconds["round"]}
    decided = result.clients["crr_decision"]
    return row, {name: int((decided == Decision[name.upper()]).sum()) for name in CRR_NAMES}


def _finish(
    world: World, outcome: tuple[RunFolder, tuple[str, ...], State, Scores, Scores, Totals] | None, start: float
) -> dict[str, object] | None:
    """*Collective*. Write the final models and the summary; the summary comes last and says that the run is whole."""
    memory = psutil.Process().memory_info()
    peak = _peak_rss()
    rows = gather_rows(world.ranks, {c: np.array([peak]) for c in world.ranks.hosted}, 1, world.patience, world.meter)
    result = None
    with agree(world.ranks, "writing the results", world.patience):
        if outcome is not None and rows is not None:
            folder, names, state, before, last, totals = outcome
            save_models(folder, names, world, state)
            extra = {
                "seconds": time.perf_counter() - start,
                "peak_rss_bytes": int(max(peak, rows.max(), memory.rss)),
                "rounds": world.config.federation.rounds,
                "ranks": world.ranks.size,
                "seed": world.config.run.seed,
                "config_digest": world.config.digest(),
                "global_sha256": logbook.sha256(folder.global_model),
            }
            result = logbook.summary(names, before, last, totals, extra)
            run_folder.write_json(folder.summary, result)
    return result


def save_models(folder: RunFolder, names: tuple[str, ...], world: World, state: State) -> None:
    """Write the global model and every client's personalized one, as safetensors. *Not collective*; server only."""
    server, layout = state.server, world.learner.layout
    if server is None:
        return
    _save(folder.global_model, layout.state_dict(server.theta, server.buffers))
    for c, name in enumerate(names):
        own = state.clients[c].model if c in state.clients else None  # where methods exchange nothing
        theta, buffers = own or (server.theta * server.histories[c].mask.to_bool(), server.buffers)
        _save(folder.client_model(name), layout.state_dict(theta, buffers))


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    run_folder.write_whole(path, safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}))


def _peak_rss() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    import resource  # noqa: PLC0415 - Unix only, as MPI clusters are

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def facts(world: World, folder: RunFolder) -> dict[str, str]:
    """Return what a person wants to know before waiting."""
    config, layout = world.config, world.learner.layout
    source = "embedded synthetic people" if config.data.root is None else str(config.data.root)
    switches = [name for name in SWITCHES if getattr(config, name).enabled]
    method = " ".join(switches) if config.method == FEDKLPR else config.method
    protocol = Protocol.of(config.evaluation.protocol)
    return {
        "data": f"{source}, {len(world.ranks.hosts)} clients, {config.data.height}x{config.data.width}",
        "model": f"{config.model.arch}, {layout.size:,} parameters ({4 * layout.size / 1e6:.1f} MB dense)",
        "method": f"{config.federation.rounds} rounds x {config.local.epochs} local epochs; {method}",
        **({} if protocol == STANDARD else {"scores": protocol.name}),
        "wire": f"{kernels.active()} kernels, {config.comm.segment_mb:g} MB segments",
        "out": f"{folder.path}/",
    }


def provenance(world: World, placed: list[Seat]) -> dict[str, Any]:
    """Return what must be known to repeat the run."""
    config = world.config
    return {
        **collect(),
        "config": to_yaml(config),
        "config_digest": config.digest(),
        "seed": str(config.run.seed),
        "torch_version": torch.__version__,
        "mpi4py_version": version("mpi4py"),
        "mpi_library": MPI.Get_library_version().splitlines()[0].strip("\0 "),
        "ranks": str(world.ranks.size),
        "hosts": [seat.host for seat in placed],
        "devices": [seat.device for seat in placed],
        "client_ranks": [str(host) for host in world.ranks.hosts],
        "threads": str(config.compute.threads),
        "kernels": kernels.active(),
        "evaluation_protocol": Protocol.of(config.evaluation.protocol).name,
        "weights_sha256": world.learner.model.weights_sha256 or "",
    }
