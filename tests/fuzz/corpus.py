"""Seeds for the fuzz target, as files: ``python -m tests.fuzz.corpus DIR``."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedmpi.sparse import Head, Kind, Mask, MaskMode, ValueCoding, encode_head, encode_mask, encode_values, values_bound
from tests.fuzz.messages import ENTRIES, EPOCH, LAYOUT, MAX_SCALARS, PREVIOUS, REFERENCE

HEAD, REPAIRED, SECTION, VALUES = range(len(ENTRIES))


def masks() -> Iterator[Mask]:
    """Masks that between them need every mode and every coder."""
    rng, size = np.random.default_rng(2), LAYOUT.size
    yield Mask.full(size)
    yield PREVIOUS
    yield PREVIOUS.symmetric_difference(Mask.from_bool(rng.random(size) < 0.02))
    for density in (0.01, 0.1, 0.5, 0.9):
        drawn = Mask.from_bool(rng.random(size) < density)
        yield drawn
        yield drawn & PREVIOUS
    yield Mask.from_bool(np.repeat(rng.random(size // 16 + 1) < 0.5, 16)[:size])
    yield Mask.from_bool(np.arange(size) % 3 == 0)


def seeds() -> Iterator[bytes]:
    """Yield inputs of the fuzz target that decode."""
    for mask in masks():
        for previous in (None, PREVIOUS):
            mode, section = encode_mask(mask, previous, LAYOUT)
            yield bytes([SECTION, mode]) + mask.count().to_bytes(2, "little") + section
            same = mask == previous
            head = Head(
                kind=Kind.UPDATE,
                round=1,
                client=1,
                base_epoch=EPOCH,
                epoch=EPOCH if same else EPOCH + 1,
                mask=mask,
                buffers=np.zeros(3, np.float32),
                scalars=np.zeros(MAX_SCALARS),
            )
            data = encode_head(head, LAYOUT, previous)[0].tobytes()
            yield bytes([HEAD]) + data
            yield bytes([REPAIRED]) + data
        yield bytes([SECTION, MaskMode.BITMAP]) + mask.count().to_bytes(2, "little") + mask.bitmap.tobytes()
    yield from segments()


def segments() -> Iterator[bytes]:
    """Yield segments of values: trained ones, constants, noise of all bits, none."""
    rng = np.random.default_rng(3)
    near = REFERENCE + np.float32(0.01) * rng.standard_normal(REFERENCE.size, np.float32)
    noise = rng.integers(0, 1 << 32, 300, np.uint32).view(np.float32)
    for given in (near[:1000], near[:7], np.ones(200, np.float32), noise, near[:0]):
        for coding in ValueCoding:
            if coding == ValueCoding.FP16 and given is noise:
                continue
            reference = REFERENCE[: given.size] if coding == ValueCoding.LOSSLESS_DELTA else None
            data = encode_values(given, coding, reference).tobytes()
            assert len(data) <= values_bound(coding, given.size)
            yield bytes([VALUES, coding]) + given.size.to_bytes(2, "little") + data


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (folder / f"{number:03}").write_bytes(seed)


if __name__ == "__main__":
    main()
