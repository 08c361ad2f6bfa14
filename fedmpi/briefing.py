"""What a run is, in words: for the person who waits for it, and for whoever wants to repeat it."""

from importlib.metadata import version
from typing import Any

import torch
from mpi4py import MPI

from fedmpi import logbook
from fedmpi.comm.devices import Seat
from fedmpi.config import FEDKLPR, SWITCHES, to_yaml
from fedmpi.federated.round import World
from fedmpi.record import collect
from fedmpi.reid.protocol import STANDARD, Protocol
from fedmpi.run_folder import RunFolder
from fedmpi.sparse import kernels


def briefing(world: World, folder: RunFolder) -> dict[str, str]:
    """Return what a person wants to know before waiting, by name; *not collective*."""
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
        "wire": f"{_values_word(world)} values, {kernels.active()} kernels, {_segments_word(config.comm.segment_mb)}",
        "out": f"{folder.path}/",
    }


def provenance(world: World, placed: list[Seat]) -> dict[str, Any]:
    """Return what must be known to repeat the run, as the run file keeps it; *not collective*."""
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


def _segments_word(megabytes: float | None) -> str:
    return "pieces that fit" if megabytes is None else f"{megabytes:g} MB segments"


def _values_word(world: World) -> str:
    """Return how values travel in this run, as the run file writes it."""
    return logbook.CODING_NAMES[world.reduce.coding].decode()
