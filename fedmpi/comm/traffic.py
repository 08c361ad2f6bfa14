"""The meter: what was handed to MPI, message by message, at the server's end (which is one end of every message)."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Self

from fedmpi.sparse import HEADER_SIZE, Kind, MaskMode, ValueCoding
from fedmpi.sparse.header import Header


class Direction(IntEnum):
    """Where a message goes and what for; the values are part of the run file."""

    DOWN = 0  # the personalized model
    UP = 1  # the update
    REQUEST = 2  # a client's word on its received model (CRR stage 2): keep it, or recover
    RECOVER = 3  # values that a recovering client had pruned
    EVALUATE = 4  # the whole global model, for measuring only; no method pays for it
    MEANS = 5  # what a rank has merged, to the server (sharded, hierarchical); noted for the rank's first client


DIRECTIONS = {
    Kind.MODEL: Direction.DOWN,
    Kind.UPDATE: Direction.UP,
    Kind.REQUEST: Direction.REQUEST,
    Kind.RECOVERED: Direction.RECOVER,
    Kind.EVALUATION: Direction.EVALUATE,
}
NEVER_DENSE = (Kind.REQUEST, Kind.RECOVERED)  # only a method that prunes sends these


@dataclass(frozen=True)
class Traffic:
    """One message: its sections in bytes, and the time that it took at the server.

    ``dense`` is what the same message would have cost without pruning: all values, no mask. ``start`` is seconds since
    the round began; ``seconds`` runs from the first byte posted to the last one done, waiting included.
    """

    round: int
    client: int
    direction: Direction
    header: int
    mask: int
    values: int
    buffers: int
    scalars: int
    dense: int
    mask_mode: int
    coding: int
    start: float
    seconds: float

    @classmethod
    def of(cls, header: Header, *, start: float, seconds: float, values: int = 0) -> Self:
        """Return the record of a message from its header and the bytes of its values, as far as they are known."""
        buffers, scalars = 4 * header.buffers, 8 * header.scalars
        whole = header.kind not in NEVER_DENSE
        return cls(
            round=header.round,
            client=header.client,
            direction=DIRECTIONS[Kind(header.kind)],
            header=HEADER_SIZE,
            mask=header.mask_bytes,
            values=values or header.value_bytes,
            buffers=buffers,
            scalars=scalars,
            dense=HEADER_SIZE + buffers + scalars + 4 * header.size if whole else 0,
            mask_mode=header.mask_mode,
            coding=header.coding,
            start=start,
            seconds=seconds,
        )

    @classmethod
    def of_means(cls, update: Self, client: int, header: int, values: int, seconds: float) -> Self:
        """Return the record of a rank's share of the mean of the same round as ``update``."""
        return replace(
            update,
            client=client,
            direction=Direction.MEANS,
            header=header,
            mask=0,
            values=values,
            buffers=0,
            scalars=0,
            dense=0,
            mask_mode=MaskMode.ABSENT,
            coding=ValueCoding.RAW_F32,
            seconds=seconds,
        )

    @property
    def total(self) -> int:
        """All bytes of the message."""
        return self.header + self.mask + self.values + self.buffers + self.scalars


@dataclass
class Meter:
    """Collects the messages of a round, the bytes of everything that is not a message, and where the time went."""

    messages: list[Traffic] = field(default_factory=list)
    control: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    encoding: dict[int, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add what the body takes to ``seconds[stage]``: encode, transfer, wait, decode or merge. *Not collective.*"""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @contextmanager
    def time_encoding(self, client: int) -> Iterator[None]:
        """Add what the body takes to ``encoding[client]``. *Not collective.*"""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.encoding[client] = self.encoding.get(client, 0.0) + time.perf_counter() - start

    def take_seconds(self) -> tuple[dict[str, float], dict[int, float]]:
        """Return seconds by stage and of each client's encoding since the last call; forget them. *Not collective.*"""
        noted = self.seconds, self.encoding
        self.seconds, self.encoding = {}, {}
        return noted

    def add(self, messages: Iterable[Traffic]) -> None:
        """Note messages. *Not collective.*"""
        self.messages.extend(messages)

    def take(self) -> tuple[list[Traffic], int]:
        """Return what was noted since the last call, and forget it. *Not collective.*"""
        noted, control = self.messages, self.control
        self.messages, self.control = [], 0
        return noted, control
