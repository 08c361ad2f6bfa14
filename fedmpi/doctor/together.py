"""What the ranks find out together: who would run what where, and the examination of every rank.

Needs MPI; imported only once it has started.
"""

import json
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from fedmpi.comm import Patience, Ranks, check_same
from fedmpi.comm.devices import Seat, check_sharing, choose_device, node_place, seats
from fedmpi.config import RunConfig
from fedmpi.doctor.findings import Part
from fedmpi.errors import DeviceError, LaunchError

SHARED_GPU = "fine for a trial; for speed ask for more GPUs or start fewer ranks"


def placement(comm: MPI.Intracomm, settings: RunConfig, names: tuple[str, ...]) -> tuple[Part, list[Seat]]:
    """*Collective*. Return who would run what where, as a training would decide; no seats where it would refuse."""
    part = Part("placement")
    try:
        check_same(comm, configuration=settings.digest(), **{"list of clients": "\n".join(names)})
        if not names:
            return part, []
        ranks = Ranks.create(comm, len(names))
    except LaunchError as error:
        part.error(str(error))
        return part, []
    try:
        return part, _seats(ranks, settings, part)
    finally:
        ranks.free()


def _seats(ranks: Ranks, settings: RunConfig, part: Part) -> list[Seat]:
    place, _ = node_place(ranks)
    device = torch.device("cpu")
    try:
        device = choose_device(settings.compute.device, ranks, place)
    except DeviceError as error:
        part.error(str(error))
    placed = seats(ranks, device)
    try:
        shared = check_sharing(placed, exclusive=settings.compute.require_exclusive_gpu)
    except DeviceError as error:
        part.error(str(error))
    else:
        if shared:
            part.warning(shared, SHARED_GPU)
    return placed


def gather(comm: MPI.Intracomm, report: dict[str, Any]) -> list[dict[str, Any]]:
    """*Collective*. Return the reports of all ranks on rank 0, an empty list elsewhere. Ranks may come late."""
    mine, patience = np.frombuffer(json.dumps(report).encode(), np.uint8), Patience()
    sizes = np.zeros(comm.size, np.int64)
    patience.wait(comm.Iallgather(np.array([mine.size], np.int64), sizes), "all ranks to look at themselves")
    everyone = np.empty(int(sizes.sum()) if comm.rank == 0 else 0, np.uint8)
    target = [everyone, (sizes, None), MPI.BYTE] if comm.rank == 0 else None
    patience.wait(comm.Igatherv([mine, MPI.BYTE], target), "the reports of all ranks")
    ends = np.cumsum(sizes)
    texts = [everyone[end - size : end].tobytes() for size, end in zip(sizes, ends, strict=True) if comm.rank == 0]
    return [json.loads(text) for text in texts]


def tell(comm: MPI.Intracomm, code: int) -> int:
    """*Collective*. Return the exit code of rank 0 on every rank; the others wait without burning their cores."""
    verdict = np.array([code], np.int64)
    Patience().wait(comm.Ibcast(verdict), "the verdict of rank 0")
    return int(verdict[0])
