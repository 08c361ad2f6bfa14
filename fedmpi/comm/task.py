"""What one rank knows when the values of a round are to be merged, and how its own clients' values are coded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm.ranks import Ranks
from fedmpi.comm.segments import Cuts, Range
from fedmpi.comm.traffic import Meter
from fedmpi.comm.waiting import Patience
from fedmpi.sparse import Head, Mask, ValueCoding, encode_values
from fedmpi.sparse.kernels import pack

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Surroundings:
    """What all plans of an uplink work with; fixed for the life of the plan."""

    ranks: Ranks
    cuts: Cuts
    patience: Patience
    meter: Meter


@dataclass(frozen=True)
class Task:
    """One merge; see :meth:`fedmpi.comm.reduce.Reduce.merge` for the fields.

    ``codings`` are those of the clients that this rank knows: all on the server, the hosted ones elsewhere.
    """

    values: Mapping[int, Values]
    masks: Mapping[int, Mask]
    codings: Mapping[int, ValueCoding]
    heads: Mapping[int, Head]
    weights: Mapping[int, float]
    theta: Values | None
    skip_pruned: bool
    references: Mapping[int, Values]

    def encoded(self, client: int, parts: tuple[Range, ...], meter: Meter) -> Iterator[NDArray[np.uint8]]:
        """Yield the parts of a hosted client; raw ones are views of its values. *Not collective.*"""
        mask, coding, values = self.masks[client], self.codings[client], self.values[client]
        reference = self.references.get(client) if coding == ValueCoding.LOSSLESS_DELTA else None
        at = mask.count(0, parts[0][0]) if parts else 0
        for lo, hi in parts:
            count = mask.count(lo, hi)
            with meter.time_encoding(client):
                old = None if reference is None else pack(reference, mask, lo, hi)
                yield encode_values(values[at : at + count], coding, old)
            at += count
