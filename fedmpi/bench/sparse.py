"""The package's own exchange as the rounds use it, on drawn masks and values."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from fedmpi.bench.cases import Values, draw_mask, draw_trained
from fedmpi.bench.field import Field
from fedmpi.comm import (
    Address,
    Known,
    Meter,
    Ranks,
    Reduce,
    Scatter,
    SharedUpdates,
    SharedVector,
    plan_downlink,
    plan_uplink,
)
from fedmpi.comm.coding import Wire
from fedmpi.errors import WireError
from fedmpi.sparse import Head, Kind, Mask, kept
from fedmpi.sparse.kernels import pack

TOLERANCE = 1e-6  # of a mean, relative to the mean of magnitudes
ROUNDED = {"bf16": 2.0**-8, "fp16": 2.0**-11}
_CHECKED = 1 << 18


@dataclass(frozen=True)
class Shared:
    """Memory that all ranks share, for both directions."""

    down: SharedVector
    up: SharedUpdates

    @classmethod
    def where_possible(cls, ranks: Ranks, size: int) -> Self | None:
        """*Collective*. Return the memory, None where the ranks cannot share it."""
        down, up = plan_downlink(ranks, size, "auto"), plan_uplink(ranks, size, "auto")
        if down is None or up is None:
            return None
        down.least = 0.0  # at every density, worth it or not
        return cls(down, up)

    def free(self) -> None:
        """*Collective*. Give it back."""
        self.down.free()
        self.up.free()


class Sparse:
    """Scatter and gather-merge at one density; masks are drawn from the client's number and known on both ends.

    ``coding`` is a value of the key ``wire.values``. Lossless values are coded against what was sent before. With
    ``shared`` memory, clients take their values from there and lay their updates down there. ``sharded``: every rank
    merges a share of the parameters. With ``nodes``, of every rank, each node merges its clients first.
    """

    def __init__(
        self,
        field: Field,
        density: float,
        coding: str = "raw",
        shared: Shared | None = None,
        *,
        sharded: bool = False,
        nodes: Sequence[int] | None = None,
    ) -> None:
        self._field, self.density, self.coding = field, density, coding
        self.plan = "sharded" if sharded else "messages" if shared is None else "shared memory"
        self.plan = self.plan if nodes is None else "hierarchical"
        ranks, layout, size = field.ranks, field.layout, field.layout.size
        named = ranks.clients if ranks.is_server else ranks.hosted
        self._masks = {c: draw_mask(size, density, 1000 + c) for c in named}
        self._meter, self._round, self._buffers = Meter(), 0, np.zeros(layout.buffer_size, np.float32)
        wire, patience, per = Wire(values=coding), field.patience, field.segment_bytes
        self._earlier = field.earlier if coding == "lossless" else None
        self._local = np.zeros(0 if ranks.is_server else size, np.float32)
        self._scatter = Scatter(
            ranks,
            layout,
            segment_bytes=per,
            patience=patience,
            meter=self._meter,
            wire=wire,
            shared=None if shared is None else shared.down,
            room=self._room,
        )
        self.theta = self._scatter.home(field.theta) if ranks.is_server else field.theta
        self._reduce = Reduce(
            ranks,
            layout,
            segment_bytes=per,
            max_scalars=3,
            patience=patience,
            meter=self._meter,
            wire=wire,
            shared=None if shared is None else shared.up,
            sharded=sharded,
            nodes=nodes,
        )
        self._moved = (0, 0)

    def down(self) -> None:
        """*Collective*. Scatter, and every client fills the pruned places with zeros."""
        self._meter.take()
        addresses = {c: Address(mask, 1, self._earlier) for c, mask in self._masks.items()}
        source = (self.theta, self._buffers) if self._field.ranks.is_server else None
        parcels = self._scatter(Kind.MODEL, self._round, addresses, source, since=time.perf_counter())
        for parcel in parcels.values():
            parcel.dense(self._room)
        self._moved = (self._taken(), self._moved[1])

    def _room(self, size: int) -> Values:
        """Return room for a vector; a whole one is written where the client's is to be, as the dense ways do."""
        return self._local if size == self._local.size else np.empty(size, np.float32)

    def up(self) -> None:
        """*Collective*. Pack, send heads, send values, merge."""
        field, ranks, theta = self._field, self._field.ranks, self.theta
        values = {c: self._packed(c) for c in ranks.hosted}
        outgoing = {c: (self._head(c, part), self._masks[c]) for c, part in values.items()}
        known = {c: Known(mask, 1) for c, mask in self._masks.items()} if ranks.is_server else {}
        heads = self._reduce.heads(Kind.UPDATE, self._round, outgoing, known, since=time.perf_counter())
        weights = dict(enumerate(field.weights.tolist())) if ranks.is_server else {}
        target, references = (theta, {}) if ranks.is_server else (None, dict.fromkeys(ranks.hosted, self._local))
        self._reduce.merge(values, self._masks, heads, weights, target, references=references)
        self._moved = (self._moved[0], self._taken())
        self._round += 1

    def _packed(self, client: int) -> Values:
        """Return the values of a hosted client's update, in shared memory if the server reads them there."""
        mask, room = self._masks[client], self._reduce.room(client)
        if room is not None:
            return pack(self.theta, mask, out=room(mask.count()))
        return self._reduce.rounded(kept(self.theta, mask, 0, mask.size))

    def _head(self, client: int, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Head:
        mask = self._masks[client]
        return Head(
            kind=Kind.UPDATE,
            round=self._round,
            client=client,
            base_epoch=1,
            epoch=1,
            mask=mask,
            buffers=self._buffers,
            scalars=np.zeros(3),
            values_checksum=self._reduce.checksum(client, values),
            segments=self._reduce.segments(mask),
            coding=self._reduce.coding,
        )

    def _taken(self) -> int:
        return sum(message.total for message in self._meter.take()[0])

    def moved(self) -> tuple[int, int]:
        """Return the bytes of the last exchange, down and up, as the meter counted them."""
        return self._moved

    def check(self) -> None:
        """Compare the server's vector after `up` with float64, on its beginning. *Not collective.*

        Raises
        ------
        WireError
            The mean is wrong: what was timed was not the exchange.
        """
        count = min(_CHECKED, self._field.layout.size)
        found = self.theta[:count]
        expected, scale, held = masked_mean(count, self._masks, self._field.weights)
        wrong = held & ~(np.abs(found - expected) <= ROUNDED.get(self.coding, TOLERANCE) * scale)
        if wrong.any():
            raise WireError(
                f"the mean of {self.plan}, {self.coding}, at density {self.density:g} is wrong in {wrong.sum()} entries"
            )


def masked_mean(
    count: int, masks: Mapping[int, Mask], weights: np.ndarray[tuple[int], np.dtype[np.float32]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean over holders of the first ``count`` entries, float64; the mean magnitude; and who has one."""
    total, magnitude, share = np.zeros(count), np.zeros(count), np.zeros(count)
    for client, mask in masks.items():
        kept, values = mask.to_bool(0, count), draw_trained(count, client).astype(np.float64)
        total += weights[client] * kept * values
        magnitude += weights[client] * kept * np.abs(values)
        share += weights[client] * kept
    held = share > 0
    share[~held] = 1
    return total / share, magnitude / share, held
