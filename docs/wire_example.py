"""The worked examples of wire-format.md: one message, whose head is printed field by field, and one record of values.

Run ``python docs/wire_example.py``; a test compares what it prints with the text.
"""

import struct
import sys

import numpy as np
from numpy.typing import NDArray

from fedmpi.sparse import (
    Head,
    Kind,
    Layout,
    Mask,
    ValueCoding,
    encode_head,
    encode_values,
    kernels,
    values_checksum,
)

Values = NDArray[np.float32]
LAYOUT = Layout(("fc.weight", "fc.bias"), ((32, 32), (32,)), ("bn.running_mean",), ((2,),))
DIED = (3, 40, 41, 200, 517, 900)
FIELDS = (
    ("4s", "magic"), ("B", "version"), ("B", "kind: UPDATE"), ("B", "value coding: RAW_F32"),
    ("B", "mask mode: SUBSET"), ("H", "flags"), ("H", "segments"), ("I", "header checksum"), ("I", "round"),
    ("I", "client"), ("I", "base epoch"), ("I", "epoch"), ("Q", "N"), ("Q", "nnz"), ("Q", "mask bytes"),
    ("Q", "value bytes"), ("I", "buffers"), ("I", "scalars"), ("Q", "values xor64"), ("Q", "values sum64"),
    ("8s", "layout hash"), ("16s", "mask hash"), ("I", "payload checksum"), ("8s", "base mask hash"),
    ("4s", "reserved"),
)  # fmt: skip


def example() -> tuple[bytes, Mask, Mask]:
    """Return the head of an update that prunes six weights, the mask before and the mask after."""
    before = Mask.full(LAYOUT.size)
    kept = np.ones(LAYOUT.size, np.bool_)
    kept[list(DIED)] = False
    after = Mask.from_bool(kept)
    values = kernels.pack(np.arange(LAYOUT.size, dtype=np.float32) / 2, after)
    head = Head(
        Kind.UPDATE,
        round=5,
        client=2,
        base_epoch=3,
        epoch=4,
        mask=after,
        buffers=np.array([1.5, -2], np.float32),
        scalars=np.array([0.25]),
        values_checksum=values_checksum(values),
    )
    return bytes(encode_head(head, LAYOUT, before)[0]), before, after


def listing(data: bytes) -> str:
    """Return one line per field: offset, bytes in hexadecimal, name, value."""
    lines, at = [], 0
    for code, name in FIELDS:
        (value,) = struct.unpack_from("<" + code, data, at)
        length = struct.calcsize("<" + code)
        shown = "" if isinstance(value, bytes) else f" = {value}"
        lines.append(f"{at:4}  {data[at : at + length].hex():32}  {name}{shown}")
        at += length
    for length, name in ((8, "scalars: 0.25"), (8, "buffers: 1.5, -2"), (len(data) - at - 16, "mask section")):
        lines.append(f"{at:4}  {data[at : at + length].hex():32}  {name}")
        at += length
    return "\n".join(line.rstrip() for line in lines) + "\n"


def record() -> tuple[bytes, Values, Values]:
    """Return the lossless record of six values, the reference and the values: 3, 0, 5, -6, 1 and 40 bits away."""
    old = np.array([1.0, 1.0, -0.5, 0.75, 1.5, -0.625], np.float32)
    new = (old.view(np.int32) + np.array([3, 0, 5, -6, 1, 40], np.int32)).view(np.float32)
    return bytes(encode_values(new, ValueCoding.LOSSLESS_DELTA, old)), old, new


if __name__ == "__main__":
    sys.stdout.write(f"{listing(example()[0])}\nrecord  {record()[0].hex()}\n")
