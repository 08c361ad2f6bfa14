"""Waiting that burns no core: test, sleep, back off; and give up at a deadline that names who is late.

A blocking MPI wait spins. With more ranks than cores it takes the cores from the ranks that train, so every wait that
can last as long as training polls instead.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fedmpi.errors import RankFailure, WireError


def ignore(_: str) -> None:
    """Take no notice."""


def never() -> None:
    """Do not interrupt."""


LOOKS = 4
"""How often a wait is looked after in the time that it has lasted so far."""
LIVELY = 5e-4
"""Longest sleep in the middle of an exchange, in seconds."""
BURST = 32
"""Most looks one after the other, between two sleeps in the middle of an exchange."""
_kept_alive: list[object] = []


def keep_alive(objects: Iterable[object]) -> None:
    """Keep abandoned requests and their buffers, since a late message would write into freed memory.

    Only for a process that is about to end.
    """
    _kept_alive.extend(objects)


@dataclass(frozen=True)
class Patience:
    """How to wait: first and longest sleep between two looks, and the deadline, all in seconds.

    For the first ``brisk`` seconds a wait gives up the core between two looks but does not sleep: the next range is
    often that near. It is short, since with more ranks than cores those that look take the core from those that work.
    From then on a wait sleeps a quarter of what it has lasted: it ends at most so much too late.
    ``looks`` is how often it looks before it sleeps again: MPI libraries take a message or two from the others'
    queues at each look, and what is waited for may stand behind a hundred that came early.
    ``notice`` is told what is waited for at every look, so that a person can be shown. ``interrupt`` is called
    before the work of every client, and may raise ``Stopped``.
    """

    first: float = 50e-6
    longest: float = 1e-2
    deadline: float = 7200.0
    notice: Callable[[str], None] = ignore
    brisk: float = 1e-4
    looks: int = 1
    interrupt: Callable[[], None] = never

    def lively(self, ranks: int, *, hub: bool) -> "Patience":
        """Return the same for the middle of an exchange, whose other end may get no further while this one sleeps.

        ``hub`` is for the one rank that hears from all. With many more ``ranks`` than cores the others look once:
        should all look often, there would be no core left to work.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1  # not everywhere
        looks = BURST if hub else max(1, min(BURST, BURST * cores // ranks))
        return replace(self, longest=min(self.longest, LIVELY), looks=looks)

    def until(self, done: Callable[[], bool], what: str | Callable[[], str]) -> None:
        """Return once ``done()`` holds; raise ``RankFailure`` naming ``what`` at the deadline. *Not collective.*"""
        start = time.monotonic()
        brisk, end = start + self.brisk, start + self.deadline
        while not any(done() for _ in range(self.looks)):
            now = time.monotonic()
            if now < brisk:
                os.sched_yield()
                continue
            awaited = what if isinstance(what, str) else what()
            if now > end:
                message = f"no answer within {self.deadline:g} s: {awaited} (comm.deadline_s sets the limit)"
                raise RankFailure(message)
            self.notice(awaited)
            time.sleep(min(max(self.first, (now - start) / LOOKS), self.longest))

    def wait(self, request: MPI.Request, what: str) -> None:
        """Return once ``request`` is complete. *Not collective.*"""
        self.wait_all([request], what)

    def wait_all(self, requests: list[MPI.Request], what: str) -> None:
        """Return once all ``requests`` are complete, and empty the list. *Not collective.*"""
        try:
            for request in requests:
                self.until(request.Test, what)
        except RankFailure:
            keep_alive(requests)
            raise
        requests.clear()

    def wait_bytes(self, requests: list[MPI.Request], what: str) -> list[int]:
        """Return how many bytes each receive brought, once all are complete. *Not collective.*"""
        statuses = [MPI.Status() for _ in requests]
        try:
            for request, status in zip(requests, statuses, strict=True):
                self.until(partial(request.Test, status), what)
        except RankFailure:
            keep_alive(requests)
            raise
        return [status.Get_count(MPI.BYTE) for status in statuses]

    def receive_bytes(self, comm: MPI.Intracomm, source: int, limit: int, what: str, tag: int = 0) -> NDArray[np.uint8]:
        """Receive the next message from ``source``, of unknown length; refuse more than ``limit`` bytes unread.

        *Not collective.* The length is known before memory is taken for it.
        """
        status, found = MPI.Status(), []

        def arrived() -> bool:
            message = comm.Improbe(source, tag, status)
            if message is not None:
                found.append(message)
            return bool(found)

        self.until(arrived, what)
        size = status.Get_count(MPI.BYTE)
        if size > limit:
            message = f"{what}: {size} bytes announced, at most {limit} fit the layout"
            raise WireError(message)
        data = np.empty(size, np.uint8)
        self.wait(found[0].Irecv([data, MPI.BYTE]), what)
        return data
