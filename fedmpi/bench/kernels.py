"""``bench kernels``: pack, expand, masked copy and merge, by every implementation that this machine has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedmpi.bench.cases import Values, draw_mask, draw_values
from fedmpi.bench.records import Record, speed
from fedmpi.bench.timing import Times, interleaved, middle, ratio
from fedmpi.sparse.backend import implementations
from fedmpi.sparse.kernels import operand
from fedmpi.sparse.positions import search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from fedmpi.sparse import Mask

CLIENTS = 8
NAMES = ("pack", "expand", "masked copy", "merge", "search")


@dataclass
class Case:
    """One density: the global vector and the masks and values of eight clients."""

    size: int
    density: float
    theta: Values = field(init=False)
    masks: list[Mask] = field(init=False)
    values: list[Values] = field(init=False)
    weights: Values = field(init=False)

    def __post_init__(self) -> None:
        self.theta = draw_values(self.size, 0)
        self.masks = [draw_mask(self.size, self.density, 1 + k) for k in range(CLIENTS)]
        self.values = [draw_values(mask.count(), 100 + k) for k, mask in enumerate(self.masks)]
        self.weights = (np.linspace(0.5, 1.5, CLIENTS) / CLIENTS).astype(np.float32)
        self.dense_out, self.packed_out = np.zeros_like(self.theta), np.zeros_like(self.values[0])

    def bytes_of(self, name: str) -> int:
        """Return the bytes of packed values that an operation reads or writes."""
        return sum(part.nbytes for part in (self.values if name == "merge" else self.values[:1]))

    def package(self, module: ModuleType) -> dict[str, Callable[[], object]]:
        """Return the package's own kernels, by one implementation, which has met the masks before."""
        kept = [operand(module, mask, 0, mask.size) for mask in self.masks]
        return {
            "pack": lambda: module.pack(self.theta, kept[0], self.packed_out),
            "expand": lambda: module.expand(self.values[0], kept[0], self.dense_out),
            "masked copy": lambda: module.masked_copy(self.theta, self.masks[0].words, self.dense_out),
            "merge": lambda: module.merge(
                self.theta, self.values, kept, self.weights, self.dense_out, skip_pruned=True
            ),
        }


class Dense:
    """What the others are compared with: one copy of the vector, and the mean of eight dense vectors in torch."""

    def __init__(self, case: Case) -> None:
        self.source, self.target = case.theta, np.zeros_like(case.theta)
        self.clients = [torch.from_numpy(draw_values(case.size, 200 + k)) for k in range(CLIENTS)]
        self.weights, self.total = case.weights.tolist(), float(case.weights.sum())
        self.out = torch.zeros(case.size)

    def copy(self) -> None:
        """Copy the vector once."""
        np.copyto(self.target, self.source)

    def merge(self) -> None:
        """Add all clients, divide by the sum of weights."""
        self.out.zero_()
        for part, weight in zip(self.clients, self.weights, strict=True):
            self.out.add_(part, alpha=weight)
        self.out.div_(self.total)


def measure(size: int, densities: Sequence[float], repeats: int) -> Iterator[Record]:
    """Yield the records of all densities; the clock is the CPU time of one thread.

    ``merge`` is compared with the dense mean in torch, the others with one copy of the dense vector.
    ``search`` is what torch's kernels do once for each new mask: they find its positions.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for density in densities:
            case = Case(size, density)
            yield from _records(case, interleaved(_variants(case), repeats))
    finally:
        torch.set_num_threads(threads)


def _variants(case: Case) -> dict[str, Callable[[], object]]:
    dense = Dense(case)
    variants: dict[str, Callable[[], object]] = {"copy/memcpy": dense.copy, "merge/dense torch": dense.merge}
    for plan, module in implementations().items():
        variants |= {f"{name}/{plan}": call for name, call in case.package(module).items()}
    return variants | {"search/torch": lambda: search(case.masks[0])}


def _records(case: Case, times: Times) -> Iterator[Record]:
    copy, merge = times["copy/memcpy"], times["merge/dense torch"]
    yield _record(case, "copy", "memcpy", copy, copy, 4 * case.size)
    yield _record(case, "merge", "dense torch", merge, merge, 4 * case.size * CLIENTS)
    for name in NAMES:
        for variant, spent in times.items():
            operation, plan = variant.split("/")
            if operation == name and plan != "dense torch":
                yield _record(case, name, plan, spent, merge if name == "merge" else copy, case.bytes_of(name))


def _record(case: Case, name: str, plan: str, times: list[float], base: list[float], moved: int) -> Record:
    density = 1.0 if plan in {"memcpy", "dense torch"} else case.density
    return Record("kernels", name, density, plan, "raw", middle(times), moved, ratio(times, base))


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return the table, heads first."""
    heads = ("operation", "by", "density", "CPU time", "MB", "GB/s", "/ dense")
    return [heads, *((r.name, r.plan, f"{r.density:g}", *speed(r)) for r in records)]
