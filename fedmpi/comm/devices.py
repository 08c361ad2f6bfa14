"""Which device each rank computes on: one GPU per client where there are enough, never a silent fall-back.

Environment variables of launchers are not trusted (Open MPI permutes its local rank when oversubscribed, mpirun inside
sbatch hands every rank SLURM_LOCALID=0): the place on the node comes from MPI itself. CUDA_VISIBLE_DEVICES is read by
torch and never written.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch
from mpi4py import MPI

from fedmpi.comm.ranks import Ranks, host_names
from fedmpi.errors import DeviceError

NAME_BYTES = 96


@dataclass(frozen=True)
class Seat:
    """Where one rank runs: host, device and CPU threads. ``device_id`` tells physical devices apart."""

    rank: int
    host: str
    device: str
    device_id: str
    clients: tuple[int, ...]


def node_place(ranks: Ranks) -> tuple[int, int]:
    """*Collective*. Return (index of this rank among the client-hosting ranks of its node, ranks on the node)."""
    node = ranks.comm.Split_type(MPI.COMM_TYPE_SHARED, key=ranks.rank)
    try:
        hosting = np.empty(node.size, np.int64)
        node.Allgather(np.array([bool(ranks.hosted)], np.int64), hosting)
        return int(hosting[: node.rank].sum()), node.size
    finally:
        node.Free()


def choose_device(wanted: str, ranks: Ranks, place: int) -> torch.device:
    """Return the device of this rank. *Not collective.*

    Client-hosting ranks of a node take the visible GPUs in turn; a server that hosts no client works on the CPU, so
    that nine ranks fit eight GPUs.

    Raises
    ------
    DeviceError
        When ``cuda`` is demanded and this rank sees none.
    """
    gpus = torch.cuda.device_count() if wanted in {"auto", "cuda"} else 0
    if not ranks.hosted:
        return torch.device("cpu")
    if gpus == 0:
        if wanted == "cuda":
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
            message = (
                f"compute.device is cuda, but rank {ranks.rank} sees no GPU (CUDA_VISIBLE_DEVICES: {visible}); "
                "ask the scheduler for GPUs, or set compute.device=cpu"
            )
            raise DeviceError(message)
        return torch.device("cpu")
    return torch.device("cuda", place % gpus)


def seats(ranks: Ranks, device: torch.device) -> list[Seat]:
    """*Collective*. Return where every rank runs, in rank order."""
    name, identity = describe(device)
    mine = np.frombuffer(f"{name}\0{identity}".encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0"), np.uint8)
    everyone = np.empty((ranks.size, NAME_BYTES), np.uint8)
    ranks.control.Allgather(mine, everyone)
    result = []
    for rank, (host, row) in enumerate(zip(host_names(ranks.control), everyone, strict=True)):
        name, identity = row.tobytes().rstrip(b"\0").decode(errors="replace").split("\0")[:2]
        clients = tuple(c for c, h in enumerate(ranks.hosts) if h == rank)
        result.append(Seat(rank, host, name, f"{host}/{identity}", clients))
    return result


def describe(device: torch.device) -> tuple[str, str]:
    """Return (readable name, identity of the physical device on its host). *Not collective.*"""
    if device.type != "cuda":
        return "cpu", "cpu"
    properties = torch.cuda.get_device_properties(device)
    return f"cuda:{device.index} {properties.name}"[:48], str(getattr(properties, "uuid", device.index))


def check_sharing(placed: list[Seat], *, exclusive: bool) -> str:
    """Return a warning when ranks share a GPU, or an empty string; raise ``DeviceError`` when that is forbidden.

    *Not collective*; every rank sees the same table and decides the same.
    """
    users: dict[str, list[int]] = {}
    for seat in placed:
        if seat.device != "cpu":
            users.setdefault(seat.device_id, []).append(seat.rank)
    shared = [ranks for ranks in users.values() if len(ranks) > 1]
    if not shared:
        return ""
    message = f"ranks {', '.join(map(str, shared[0]))} share one GPU"
    if exclusive:
        advice = "; start fewer ranks or ask for more GPUs (compute.require_exclusive_gpu forbids sharing)"
        raise DeviceError(message + advice)
    return message
