"""What arrives, decoded from any bytes: nothing but WireError may come out, and little memory may be taken.

Coverage-guided, with the seeds of corpus.py (atheris is not among the dependencies)::

    pip install atheris
    python -m tests.fuzz.corpus CORPUS
    python -m tests.fuzz.messages CORPUS -max_len=8192 -max_total_time=600

The first byte says what the rest is; see ``ENTRIES``.
"""

import sys
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fedmpi.errors import WireError
from fedmpi.sparse import (
    HEADER_SIZE,
    Kind,
    Layout,
    Mask,
    ValueCoding,
    decode_head,
    decode_mask,
    decode_values,
    encode_mask,
    encode_values,
    peek,
)

LAYOUT = Layout(("a", "b", "c", "d"), ((500, 4), (64,), (1000, 3), (7,)), ("mean",), ((3,),))
PREVIOUS = Mask.from_bool(np.random.default_rng(0).random(LAYOUT.size) < 0.7)
EPOCH, MAX_SCALARS = 4, 2
REFERENCE = np.random.default_rng(1).standard_normal(4096, np.float32)
BOUND = 64 * LAYOUT.size + (1 << 16)
"""Bytes that one message may take: docs/wire-format.md allows 34 an entry, the rest is Python's."""


def bounded(decode: Callable[[], Any]) -> Any:
    """Return what was decoded, None if it was refused; AssertionError when that took too much memory."""
    tracing = tracemalloc.is_tracing()
    tracemalloc.start()  # nothing new where it is on
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        return decode()
    except WireError:
        return None
    finally:
        taken = tracemalloc.get_traced_memory()[1] - before
        if not tracing:
            tracemalloc.stop()
        assert taken <= BOUND, f"{taken} bytes of memory, at most {BOUND} are allowed"


def whole_head(data: bytes) -> None:
    """A head as it comes from the network."""
    for previous in (None, PREVIOUS):
        bounded(partial(peek, data, LAYOUT, MAX_SCALARS))
        expected = {"kind": Kind.UPDATE, "round": 1, "client": 1, "epoch": EPOCH, "max_scalars": MAX_SCALARS}
        bounded(partial(decode_head, data, LAYOUT, previous=previous, **expected))


def repaired_head(data: bytes) -> None:
    """A head whose checksums are made right, so that what they protect is reached."""
    if len(data) < HEADER_SIZE:
        return
    raw = bytearray(data)
    raw[112:116] = zlib.crc32(raw[HEADER_SIZE:]).to_bytes(4, "little")
    raw[12:16] = bytes(4)
    raw[12:16] = zlib.crc32(raw[:HEADER_SIZE]).to_bytes(4, "little")
    whole_head(bytes(raw))


def mask_section(data: bytes) -> None:
    """A mask section behind its mode and, in two bytes, the number of kept entries."""
    if len(data) < 3:
        return
    mode, nnz, section = data[0], int.from_bytes(data[1:3], "little"), data[3:]
    for previous in (None, PREVIOUS):
        mask = bounded(partial(decode_mask, mode, section, previous, LAYOUT, nnz))
        if mask is None:
            continue
        assert mask.size == LAYOUT.size
        assert mask.count() == nnz
        again = encode_mask(mask, previous, LAYOUT)
        assert decode_mask(*again, previous, LAYOUT, nnz) == mask


def values(data: bytes) -> None:
    """A segment of values behind its coding and, in two bytes, their number (below 4096)."""
    if len(data) < 3:
        return
    coding, count = ValueCoding(data[0] % len(ValueCoding)), int.from_bytes(data[1:3], "little") % 4096
    segment = np.frombuffer(data[3:], np.uint8).copy()
    for reference in (None, REFERENCE[:count]):
        found = bounded(partial(decode_values, segment, coding, count, reference))
        if found is None:
            continue
        assert found.shape == (count,)
        if coding in {ValueCoding.LOSSLESS, ValueCoding.LOSSLESS_DELTA}:
            again = decode_values(encode_values(found.copy(), coding, reference), coding, count, reference)
            assert again.tobytes() == found.tobytes()


ENTRIES: tuple[Callable[[bytes], None], ...] = (whole_head, repaired_head, mask_section, values)


def one_input(data: bytes) -> None:
    """Decode one input; AssertionError when it takes too much memory or does not survive a round trip."""
    if data:
        ENTRIES[data[0] % len(ENTRIES)](data[1:])


def main() -> None:
    import atheris

    # What decodes is instrumented, so that the search sees its branches.
    for name, module in list(sys.modules.items()):
        if name.startswith("fedmpi.sparse"):
            for attribute, found in vars(module).items():
                if callable(found) and getattr(found, "__module__", None) == name and hasattr(found, "__code__"):
                    setattr(module, attribute, atheris.instrument_func(found))
    tracemalloc.start()  # once: every start keeps some memory, until the fuzzer takes it for a leak
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
