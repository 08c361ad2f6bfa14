"""What all ways of exchanging share: the ranks, the numbers that everybody can draw again, and how to wait and time."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from fedmpi.bench.cases import Values, draw_trained, draw_values
from fedmpi.comm import Patience, Ranks, find_nodes
from fedmpi.sparse import Layout

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def nodes_of(ranks: Ranks, pretended: int | None) -> tuple[int, ...] | None:
    """*Collective*. Return the node of every rank, or None where there is only one.

    The ranks fill as many nodes as are ``pretended``, one after the other; None takes them as they are.
    """
    size = ranks.size
    nodes = find_nodes(ranks) if pretended is None else tuple(r * min(pretended, size) // size for r in range(size))
    return nodes if len({*nodes}) > 1 else None


@dataclass(frozen=True)
class Field:
    """Ranks, layout, and the vectors of this rank."""

    ranks: Ranks
    layout: Layout
    segment_bytes: int | None
    patience: Patience = field(default_factory=lambda: Patience(deadline=300.0))

    @cached_property
    def theta(self) -> Values:
        """float32[N]: on the server the global vector, which every mean overwrites; elsewhere the trained one."""
        size, rank = self.layout.size, self.ranks.rank
        return draw_values(size, 0) if self.ranks.is_server else draw_trained(size, rank - 1)

    @cached_property
    def earlier(self) -> Values:
        """float32[N]: what was sent down before; values may be coded against it."""
        size = self.layout.size
        return draw_values(size, 0) + np.float32(0.003) * draw_values(size, 999)

    @cached_property
    def _first(self) -> Values:
        return self.theta.copy()

    def renew(self, theta: Values) -> None:
        """Make a server's vector again what it was before the mean of an exchange. *Not collective.*"""
        if self.ranks.is_server:
            np.copyto(theta, self._first)

    @cached_property
    def weights(self) -> Values:
        """float32[clients], positive, with sum 1."""
        given = np.linspace(0.5, 1.5, len(self.ranks.hosts))
        shares: Values = (given / given.sum()).astype(np.float32)
        return shares

    def meet(self) -> None:
        """*Collective*. Wait for all ranks."""
        eager = Patience(self.patience.first, 2e-4, self.patience.deadline)
        eager.wait(self.ranks.comm.Ibarrier(), "all ranks")

    def timed(self, action: Callable[[], object]) -> float:
        """*Collective*. Return the wall seconds from all ranks ready to all ranks done."""
        self.meet()
        start = time.perf_counter()
        action()
        self.meet()
        return time.perf_counter() - start


class Way(Protocol):
    """One way to bring the model down to all clients and their mean up; made once, called often.

    ``theta`` is what the field's is, the server's perhaps in another place.
    """

    plan: str
    coding: str
    density: float
    theta: Values

    def down(self) -> None:
        """*Collective*. Afterwards every client has a dense float32[N] of what it is to have."""
        ...

    def up(self) -> None:
        """*Collective*. Afterwards the server's vector is the weighted mean."""
        ...

    def moved(self) -> tuple[int, int]:
        """Return the bytes of one exchange, down and up. *Not collective*; right on the server only."""
        ...


def peak_above(action: Callable[[], object]) -> int | None:
    """Run ``action``; return by how many bytes this process' memory rose meanwhile, None where nobody can tell.

    What was freed before is given back to the system first, so that it hides nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        before = _kilobytes("VmRSS")
        _CLEAR.write_text(_RESET_PEAK)
    except (OSError, StopIteration):
        action()
        return None
    action()
    return max(0, 1024 * (_kilobytes("VmHWM") - before))


def _kilobytes(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
