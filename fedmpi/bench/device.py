"""``bench device``: how one client's model moves between a GPU, the host and MPI, and what is done with it there."""

from __future__ import annotations

import time
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from mpi4py import MPI

from fedmpi.bench.cases import Values, draw_mask, draw_values
from fedmpi.bench.records import Record, speed
from fedmpi.bench.timing import Times, interleaved, middle, ratio
from fedmpi.comm.device_memory import takes_device_memory, vector
from fedmpi.comm.parcels import as_bytes
from fedmpi.comm.staging import Staging
from fedmpi.errors import DeviceError
from fedmpi.sparse.kernels import expand, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BASES = {"copy": "copy/device", "pack": "copy/device", "expand": "copy/device", "to device": "to device/whole",
         "to host": "to host/whole", "from a message": "from a message/staged"}  # fmt: skip
"""Of every operation, the variant that its ratios are against."""


def find(name: str) -> torch.device:
    """Return the device of a name; ``DeviceError`` when there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("torch sees no GPU; --device cpu goes through the same motions without one")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


class Case:
    """One density: a model on both sides, its mask, and the ways to move it."""

    def __init__(self, device: torch.device, size: int, density: float) -> None:
        self._device, self.mask = device, draw_mask(size, density, 1)
        kept = self.mask.to_bool()
        # Two in turn, since the vector that crossed last does not cross again.
        self._hosts = cycle([np.where(kept, draw_values(size, seed), np.float32(0)) for seed in (0, 1)])
        self._theta = torch.from_numpy(next(self._hosts)).to(device)
        self._target, self._values = torch.empty_like(self._theta), pack(next(self._hosts), self.mask)
        self._staging = Staging(device, size)
        self._packed = self._staging.packed(self._theta, self.mask).clone()

    def variants(self) -> dict[str, Callable[[], object]]:
        """Return what is timed, as operation/plan."""
        staging, mask = self._staging, self.mask
        found: dict[str, Callable[[], object]] = {
            "copy/device": lambda: self._target.copy_(self._theta),
            "pack/device": lambda: staging.packed(self._theta, mask),
            "expand/device": lambda: staging.expanded(self._packed, mask),
            "to device/whole": lambda: torch.from_numpy(next(self._hosts)).to(self._device),
            "to device/staged": lambda: staging.up(next(self._hosts), mask),
            "to host/whole": self._theta.cpu,
            "to host/staged": self._to_host,
            "from a message/staged": self._through_host,
        }
        if self._device.type == "cpu" or takes_device_memory():
            found["from a message/direct"] = self._straight
        return found

    def _to_host(self) -> Values:
        self._staging.start(self._theta, self.mask)
        return self._staging.finish()

    def _through_host(self) -> torch.Tensor:
        received = np.empty_like(self._values)
        self._receive(received)
        return self._staging.up(expand(received, self.mask), self.mask)

    def _straight(self) -> Values:
        received = vector(self._device, self._values.size)
        self._receive(received)
        return self._staging.arrived(received, self.mask)

    def _receive(self, target: Values | torch.Tensor) -> None:
        request = MPI.COMM_SELF.Irecv([as_bytes(target), MPI.BYTE], 0)
        MPI.COMM_SELF.Send([as_bytes(self._values), MPI.BYTE], 0)
        request.Wait()


def measure(device: torch.device, size: int, densities: Sequence[float], repeats: int) -> Iterator[Record]:
    """Yield the records of all densities; the clock is wall time, with the device's work done."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for density in densities:
        case = Case(device, size, density)
        yield from _records(case, interleaved(case.variants(), repeats, clock))


def _records(case: Case, times: Times) -> Iterator[Record]:
    density, moved = case.mask.density, 4 * case.mask.count()
    for variant, spent in times.items():
        name, plan = variant.split("/")
        whole = plan == "whole" or name == "copy"
        size = 4 * case.mask.size if whole else moved
        share = 1.0 if whole else density
        yield Record("device", name, share, plan, "raw", middle(spent), size, ratio(spent, times[BASES[name]]))


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return the table, heads first."""
    heads = ("operation", "how", "density", "time", "MB", "GB/s", "/ first")
    return [heads, *((r.name, r.plan, f"{r.density:.3g}", *speed(r)) for r in records)]
