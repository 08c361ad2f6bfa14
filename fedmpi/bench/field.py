"""What all ways of exchanging share: the ranks, the numbers that everybody can draw again, and how to wait and time."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from fedmpi.bench.cases import Values, draw_values
from fedmpi.comm import Patience, Ranks
from fedmpi.sparse import Layout

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Field:
    """Ranks, layout, and the vector of this rank; ``theta`` is float32[N], drawn from the number of the client.

    The server's ``theta`` is overwritten by every mean; a mean of the same values is the same again.
    """

    ranks: Ranks
    layout: Layout
    segment_bytes: int
    patience: Patience = field(default_factory=lambda: Patience(deadline=300.0))

    @cached_property
    def theta(self) -> Values:
        """The global vector on the server, the trained one of its client on another rank."""
        return draw_values(self.layout.size, self.ranks.rank)

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
    """One way to bring the model down to all clients and their mean up; made once, called often."""

    plan: str
    coding: str
    density: float

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
