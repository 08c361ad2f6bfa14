"""``bench codec``: how many bytes masks and values take, against the fewest that they can, and how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fedmpi.bench.cases import Model, draw_mask
from fedmpi.bench.records import Record, cell, milliseconds
from fedmpi.bench.timing import interleaved, middle
from fedmpi.sparse import (
    Head,
    Kind,
    Mask,
    ValueCoding,
    decode_head,
    decode_mask,
    decode_values,
    encode_head,
    encode_mask,
    encode_values,
    values_checksum,
)
from fedmpi.sparse.bitcode import entropy_bytes
from fedmpi.sparse.kernels import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

PRUNED = 0.1
"""Share of the survivors that one mask change removes."""


@dataclass(frozen=True)
class Coded:
    """One thing that is coded: its size, the fewest bytes for it, how it is written and read.

    ``write`` returns what travels; ``read`` takes it apart again and raises when that fails.
    """

    name: str
    density: float
    coding: str
    bound: float
    bytes: int
    write: Callable[[], object]
    read: Callable[[], object]


def measure(model: Model, densities: Sequence[float], repeats: int) -> Iterator[Record]:
    """Yield three records for each thing that is coded: written, read, and the bound of its size.

    ``ratio_to_dense`` is of bytes: over those of all values of the model as they are.
    """
    for density in densities:
        for coded in cases(model, density):
            times = interleaved({"write": coded.write, "read": coded.read}, repeats, time.perf_counter)
            dense = 4 * model.layout.size
            for plan, seconds, size in (
                ("write", middle(times["write"]), coded.bytes),
                ("read", middle(times["read"]), coded.bytes),
                ("bound", None, round(coded.bound)),
            ):
                yield Record("codec", coded.name, coded.density, plan, coded.coding, seconds, size, size / dense)


def cases(model: Model, density: float) -> Iterator[Coded]:
    """Yield what is coded at one density.

    Independent masks are compared with the entropy of independent bits; masks of magnitude pruning with the entropy
    that bits of the same density would have if they were independent, which a coder that looks at each tensor beats.
    """
    size = model.layout.size
    drawn = draw_mask(size, density, 1)
    yield message(model, "update, mask sent", drawn, None)
    if density < 1:
        yield message(model, "update, magnitude mask", model.smallest_pruned(density), None)
        yield message(model, "update, mask known", drawn, drawn)
        yield change(model, drawn)
    yield from values(model, drawn)


def message(model: Model, name: str, mask: Mask, previous: Mask | None) -> Coded:
    """Return a whole update without buffers: head, mask and raw values; bound: mask entropy and 4 bytes a value."""
    layout, nnz = model.layout, mask.count()
    values = pack(model.theta, mask)
    bound = 4 * nnz + (entropy_bytes(nnz, mask.size) if previous is None else 0)

    def write() -> NDArray[np.uint8]:
        head = Head(
            kind=Kind.UPDATE,
            round=1,
            client=0,
            base_epoch=1,
            epoch=1 if mask is previous else 2,
            mask=Mask(mask.words, mask.size),  # a new one, since a mask remembers its hash
            values_checksum=values_checksum(values),
        )
        return encode_head(head, layout, previous)[0]

    data = write()

    def read() -> None:
        decode_head(data, layout, kind=Kind.UPDATE, round=1, client=0, epoch=1, previous=previous)
        values_checksum(values)

    return Coded(name, mask.density, "raw", bound, data.size + values.nbytes, write, read)


def change(model: Model, before: Mask) -> Coded:
    """Return the section of a mask that lost a tenth of its entries; bound: entropy of which survivors died."""
    after = before & draw_mask(before.size, 1 - PRUNED, 2)
    nnz, layout = after.count(), model.layout
    mode, section = encode_mask(after, before, layout)
    bound = entropy_bytes(before.count() - nnz, before.count())
    return Coded(
        "mask change alone",
        before.density,
        "none",
        bound,
        len(section),
        lambda: encode_mask(after, before, layout),
        lambda: decode_mask(mode, section, before, layout, nnz),
    )


def values(model: Model, mask: Mask) -> Iterator[Coded]:
    """Yield the values alone by every coding, against raw ones.

    The trained values are the model's own plus normal noise of a hundredth of each tensor's spread; a bound is not
    known, so that the raw size stands for it.
    """
    before, after = pack(model.theta, mask), pack(model.trained(), mask)
    for coding in ValueCoding:
        reference = before if coding == ValueCoding.LOSSLESS_DELTA else None
        data = encode_values(after, coding, reference)
        yield Coded(
            "values alone",
            mask.density,
            coding.name.lower(),
            after.nbytes,
            data.size,
            partial(encode_values, after, coding, reference),
            partial(decode_values, data, coding, after.size, reference),
        )


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return the table, heads first: one line for the three records of each thing."""
    table: list[tuple[str, ...]] = [
        ("what", "values", "density", "MB", "bound MB", "/ bound", "/ dense", "write", "MB/s", "read", "MB/s")
    ]
    for write, read, bound in zip(records[::3], records[1::3], records[2::3], strict=True):
        size, least = write.bytes or 0, bound.bytes or 0
        cells = [write.name, write.coding, f"{write.density:.3f}", cell(size / 1e6, 3), cell(least / 1e6, 3)]
        cells += [cell(size / least if least else None, 5), cell(write.ratio_to_dense, 4)]
        for timed in (write, read):
            seconds = timed.seconds or 0
            cells += [milliseconds(seconds), cell(size / 1e6 / seconds if seconds else None, 0)]
        table.append(tuple(cells))
    return table
