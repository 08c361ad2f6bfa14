"""The kernels in plain NumPy: the reference for the others, and what runs when it is asked for.

Mask bits are turned into positions at every call, in blocks of entries small enough to stay in cache, so that temporary
memory does not grow with N. The arithmetic (order of clients, float32, multiply then add) is that of the other kernels
bit for bit.

Each function sees one range of the flat vector: dense arrays of n entries and the uint64 words of their mask bits.
Values that are not as many as mask bits raise ValueError, as they do in the compiled kernels.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedmpi.sparse.values_portable import decode_values, encode_values

__all__ = [
    "checksum", "count", "decode_values", "deposit", "encode_values", "expand", "extract", "masked_copy", "merge",
    "pack",
]  # fmt: skip

Values = NDArray[np.float32]
Words = NDArray[np.uint64]

_BYTE_COUNTS = np.array([value.bit_count() for value in range(256)], np.uint8)
BLOCK = 1 << 15  # entries; four float32 blocks and a block of positions fit a 1 MB cache


def pack(dense: Values, words: Words, out: Values) -> None:
    """Write the kept entries of ``dense`` (float32[n]) to ``out`` (float32[count])."""
    _check(out, words)
    end = 0
    for block, _, index in _blocks(words, dense.size):
        np.take(dense[block], index, out=out[end : end + index.size], mode="clip")  # in range; "raise" would buffer
        end += index.size


def expand(values: Values, words: Words, out: Values) -> None:
    """Write ``values`` (float32[count]) to their places in ``out`` (float32[n]) and zeros elsewhere."""
    _check(values, words)
    end = 0
    for block, _, index in _blocks(words, out.size):
        part = out[block]
        part.fill(0)
        part[index] = values[end : end + index.size]
        end += index.size


def masked_copy(dense: Values, words: Words, out: Values) -> None:
    """Write the kept entries of ``dense`` (float32[n]) to the same places in ``out`` (float32[n]), zeros elsewhere."""
    bitmap, before, after = words.view(np.uint8), dense.view(np.uint32), out.view(np.uint32)
    for lo in range(0, dense.size, BLOCK):
        block = slice(lo, min(lo + BLOCK, dense.size))
        kept = np.unpackbits(bitmap[lo // 8 :], count=block.stop - lo, bitorder="little")
        np.multiply(before[block], kept, out=after[block])  # as integers: bits of a NaN stay, and no zero is negative


def merge(
    old: Values, values: Sequence[Values], words: Sequence[Words], weights: Values, out: Values, *, skip_pruned: bool
) -> None:
    """Write the weighted mean of the clients to ``out``; see :func:`fedmpi.sparse.kernels.merge_range`."""
    clients = [_Client(v, w, old.size) for v, w in zip(values, words, strict=True)]
    with np.errstate(all="ignore"):  # non-finite values pass through and are the caller's to refuse
        for lo in range(0, old.size, BLOCK):
            part = old[lo : lo + BLOCK]
            numerator, denominator, has_mean = _sums(clients, weights, part.size, skip_pruned=skip_pruned)
            out[lo : lo + BLOCK] = np.where(has_mean, numerator / denominator, part)


def _sums(
    clients: Sequence["_Client"], weights: Values, size: int, *, skip_pruned: bool
) -> tuple[Values, Values, NDArray[np.bool_]]:
    """Return numerator, denominator and where there is a mean, over the next ``size`` entries of all clients.

    A client that does not keep an entry adds 0 to its denominator: no bit changes, and it is faster than skipping it.
    """
    numerator, denominator = np.zeros(size, np.float32), np.zeros(size, np.float32)
    held = np.zeros(size, np.bool_)
    for client, weight in zip(clients, weights, strict=True):
        kept, index, values = client.next_block()
        numerator[index] += weight * values
        denominator += kept[:size] * weight if skip_pruned else weight
        held |= kept[:size]
    return numerator, denominator, held & (denominator != 0) if skip_pruned else np.ones(size, np.bool_)


def count(words: Words) -> int:
    """Return the number of set bits."""
    if hasattr(np, "bitwise_count"):  # NumPy 2; the table costs twice as much
        return int(np.bitwise_count(words).sum(dtype=np.int64))
    return int(_BYTE_COUNTS[words.view(np.uint8)].sum(dtype=np.int64))


def extract(words: Words, select: Words, out: Words) -> None:
    """Write the bits of ``words`` at the ones of ``select`` to ``out``, one after the other."""
    packed = np.packbits(_bits(words)[_bits(select)], bitorder="little")
    out.fill(0)
    out.view(np.uint8)[: packed.size] = packed


def deposit(packed: Words, select: Words, out: Words) -> None:
    """Write successive bits of ``packed`` to the ones of ``select`` in ``out``, and zeros elsewhere."""
    chosen = _bits(select)
    chosen[chosen] = _bits(packed)[: count(select)]
    out.view(np.uint8)[:] = np.packbits(chosen, bitorder="little")


def checksum(values: Values, odd: int) -> tuple[int, int]:
    """Return xor and sum of the 64-bit words that pairs of values form; with ``odd``, value 0 is a high half."""
    bits = values.view("<u4")
    body = bits[odd:]
    pairs = body[: body.size // 2 * 2].view("<u8")
    high = int(bits[0]) << 32 if odd and bits.size else 0
    low = int(body[-1]) if body.size % 2 else 0
    xor64 = int(np.bitwise_xor.reduce(pairs)) ^ high ^ low
    return xor64, (int(np.add.reduce(pairs)) + high + low) % (1 << 64)


class _Client:
    """One client's values, handed out block by block."""

    def __init__(self, values: Values, words: Words, size: int) -> None:
        _check(values, words)
        self._values = values
        self._blocks = _blocks(words, size)
        self._end = 0

    def next_block(self) -> tuple[NDArray[np.bool_], NDArray[np.intp], Values]:
        """Return which entries of the next block are kept, as bools and as positions, and their values."""
        _, kept, index = next(self._blocks)
        start, self._end = self._end, self._end + index.size
        return kept, index, self._values[start : self._end]


def _bits(words: Words) -> NDArray[np.bool_]:
    return np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_)


def _check(values: Values, words: Words) -> None:
    kept = count(words)
    if values.size != kept:
        raise ValueError(f"{values.size} values for {kept} mask bits")


def _blocks(words: Words, size: int) -> Iterator[tuple[slice, NDArray[np.bool_], NDArray[np.intp]]]:
    """Yield each block's place and the kept entries within it, as bools and as positions."""
    bitmap = words.view(np.uint8)
    for lo in range(0, size, BLOCK):
        kept = np.unpackbits(bitmap[lo // 8 : (lo + BLOCK) // 8], bitorder="little").view(np.bool_)
        yield slice(lo, min(lo + BLOCK, size)), kept, np.flatnonzero(kept)
