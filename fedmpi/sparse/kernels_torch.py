"""The kernels in torch: what runs where the compiled extension is missing. One thread, or torch's as configured.

They walk over positions that are kept with the mask (:mod:`fedmpi.sparse.positions`), in blocks of entries short enough
that the sums of all clients stay in cache. The arithmetic is that of the other kernels bit for bit: order of clients,
float32, multiplied and then added. Products are made apart, since torch may fuse ``alpha`` with the sum; selections are
made on bits, since torch and NumPy branch for every entry, which costs more than all the sums.

Each function sees one range of the flat vector: dense arrays of its n entries and the `Span` of a mask. Values that are
not as many as kept entries raise ValueError, as they do in the other kernels.
"""

import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpi.sparse.kernels_portable import checksum, count, decode_values, deposit, encode_values, extract, masked_copy
from fedmpi.sparse.mask import Mask
from fedmpi.sparse.positions import Span, positions

__all__ = [
    "Span", "checksum", "count", "decode_values", "deposit", "encode_values", "expand", "extract", "masked_copy",
    "merge", "pack",
]  # fmt: skip

Values = NDArray[np.float32]

BLOCK = 1 << 18
"""Entries of a block: shorter ones cost more calls, longer ones more memory and cache."""
MOST_CLIENTS = 8
"""So many clients fit a byte that says who keeps an entry."""


class _Scratch(threading.local):
    """A thread's temporary arrays, one block each: made once, since new memory costs page faults."""

    def __init__(self) -> None:
        self.places, self.bits = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
        self.product, self.numerator, self.denominator = (np.empty(BLOCK, np.float32) for _ in range(3))


_scratch = _Scratch()


def pack(dense: Values, span: Span, out: Values) -> None:
    """Write the kept entries of ``dense`` (float32[n]) to ``out`` (float32[count])."""
    span.check(out)
    found = None if span.mask.is_full or span.size < span.mask.size else positions.of(span.mask)
    if found is not None:
        torch.index_select(_tensor(dense), 0, torch.from_numpy(found), out=_tensor(out))
        return
    end = 0
    for block, places in _blocks(span):
        target = out[end : end + (block.stop - block.start if places is None else places.size)]
        end += target.size
        if places is None:
            target[:] = dense[block]
        else:
            torch.index_select(_tensor(dense[block]), 0, torch.from_numpy(places), out=_tensor(target))


def expand(values: Values, span: Span, out: Values) -> None:
    """Write ``values`` (float32[count]) to their places in ``out`` (float32[n]) and zeros elsewhere."""
    span.check(values)
    given, target = values.view(np.int32), out.view(np.int32)  # added to zeros as integers, all bits stay
    end = 0
    for block, places in _blocks(span):
        source = given[end : end + (block.stop - block.start if places is None else places.size)]
        end += source.size
        if places is None:
            target[block] = source
        else:
            target[block] = 0
            _tensor(target[block]).index_add_(0, torch.from_numpy(places), _tensor(source))


def merge(
    old: Values, values: Sequence[Values], spans: Sequence[Span], weights: Values, out: Values, *, skip_pruned: bool
) -> None:
    """Write the weighted mean of the clients to ``out``; see :func:`fedmpi.sparse.kernels.merge_range`."""
    clients = [_Client(part, span, weight) for part, span, weight in zip(values, spans, weights, strict=True)]
    table = _table(weights.tobytes()) if skip_pruned and len(clients) <= MOST_CLIENTS else None
    held = None if table is None else _holders.of([span.mask for span in spans])
    with np.errstate(all="ignore"):  # non-finite values pass through and are the caller's to refuse
        for lo in range(0, old.size, BLOCK):
            block = slice(lo, min(lo + BLOCK, old.size))
            numerator, denominator = _sums(clients, block.stop - lo, count_weights=skip_pruned and table is None)
            if not skip_pruned:
                np.divide(numerator, _in_order(weights), out=out[block])
                continue
            if table is not None and held is not None:
                start = spans[0].lo + lo
                denominator = _look_up(table, held[start // 2 :], numerator.size)
            _finish(old[block], numerator, denominator, out[block])


class _Client:
    """One client's values and weight, handed out block by block."""

    def __init__(self, values: Values, span: Span, weight: np.float32) -> None:
        span.check(values)
        self._values, self._weight = values, weight
        self._blocks = span.blocks(BLOCK, _scratch.places)
        self._end = 0

    def add_next(self, numerator: Values, denominator: Values | None) -> None:
        """Add the next block's weighted values to one sum, and the weight of kept entries to the other."""
        places = next(self._blocks)
        start, self._end = self._end, self._end + (numerator.size if places is None else places.size)
        product = np.multiply(self._values[start : self._end], self._weight, out=_scratch.product[: self._end - start])
        if places is None:
            numerator += product
            if denominator is not None:
                denominator += self._weight
            return
        index, term = torch.from_numpy(places), torch.from_numpy(product)
        torch.from_numpy(numerator).index_add_(0, index, term)
        if denominator is not None:
            product.fill(self._weight)
            torch.from_numpy(denominator).index_add_(0, index, term)


def _sums(clients: Sequence[_Client], size: int, *, count_weights: bool) -> tuple[Values, Values]:
    """Return numerator and, if it is counted here, denominator over the next ``size`` entries of all clients."""
    numerator, denominator = _scratch.numerator[:size], _scratch.denominator[:size]
    numerator.fill(0)
    if count_weights:
        denominator.fill(0)
    for client in clients:
        client.add_next(numerator, denominator if count_weights else None)
    return numerator, denominator


def _finish(old: Values, numerator: Values, denominator: Values, out: Values) -> None:
    """Write numerator over denominator to ``out``, and ``old`` where the denominator is 0."""
    mean = np.divide(numerator, denominator, out=numerator).view(np.int32)
    chosen = np.negative(denominator.view(np.int32), out=_scratch.bits[: mean.size])  # its sign says: not 0
    np.right_shift(chosen, 31, out=chosen)
    before = old.view(np.int32)
    np.bitwise_xor(mean, before, out=mean)
    np.bitwise_and(mean, chosen, out=mean)
    np.bitwise_xor(mean, before, out=out.view(np.int32))


def _look_up(table: NDArray[np.float64], pairs: NDArray[np.uint16], size: int) -> Values:
    """Return the denominators of ``size`` entries, looked up two at a time: who keeps them, as a number of 16 bits."""
    index, found = _scratch.bits[: (size + 1) // 2], _scratch.denominator.view(np.float64)[: (size + 1) // 2]
    index[:] = pairs[: index.size]
    torch.index_select(torch.from_numpy(table), 0, torch.from_numpy(index), out=torch.from_numpy(found))
    return found.view(np.float32)[:size]


@lru_cache(maxsize=1)
def _table(weights: bytes) -> NDArray[np.float64]:
    """Return the denominators of two entries, float32 each, for every pair of sets of clients that keep them.

    Bit k of the low byte of an index is client k at the first entry. Sums are taken in client order.
    """
    each = np.frombuffer(weights, np.float32)
    sets = [[k for k in range(each.size) if number >> k & 1] for number in range(1 << MOST_CLIENTS)]
    sums = np.array([_in_order(each[[k for k in members if k < each.size]]) for members in sets], np.float32)
    pairs = np.empty((sums.size, sums.size, 2), np.float32)
    pairs[:, :, 0], pairs[:, :, 1] = sums[None, :], sums[:, None]
    return pairs.view(np.float64).ravel()


class _Holders:
    """Who keeps each entry, for the masks that were merged last."""

    def __init__(self) -> None:
        self._known: tuple[tuple[ref[Mask], ...], list[bytes], NDArray[np.uint16]] | None = None

    def of(self, masks: Sequence[Mask]) -> NDArray[np.uint16]:
        """Return bytes whose bit k is client k, two entries in each number of uint16[ceil(N / 2)]."""
        known = self._known
        if known is not None and [id(mask()) for mask in known[0]] == [id(mask) for mask in masks]:
            return known[2]
        hashes = [mask.hash for mask in masks]
        held = known[2] if known is not None and known[1] == hashes else _held(masks)
        self._known = tuple(ref(mask) for mask in masks), hashes, held
        return held


_holders = _Holders()
_SPREAD = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view("<i8").ravel()


def _held(masks: Sequence[Mask]) -> NDArray[np.uint16]:
    """Spread eight mask bits of each client over eight bytes."""
    held = np.zeros(masks[0].words.size * 8, np.int64)
    tables = [torch.from_numpy(_SPREAD << client) for client in range(len(masks))]
    step = BLOCK // 8
    for lo in range(0, held.size, step):
        part = held[lo : lo + step]
        for mask, table in zip(masks, tables, strict=True):
            index = torch.from_numpy(mask.words.view(np.uint8)[lo : lo + step].astype(np.int32))
            part |= torch.index_select(table, 0, index).numpy()
    return held.view(np.uint16)


def _in_order(weights: Values) -> np.float32:
    """Return the float32 sum, one after the other; 0 for none."""
    total = np.float32(0)
    for weight in weights:
        total += weight
    return total


def _blocks(span: Span) -> Iterator[tuple[slice, NDArray[np.int32] | None]]:
    """Yield each block's place in the range, and which of its entries are kept; None for all."""
    for lo, places in zip(range(0, span.size, BLOCK), span.blocks(BLOCK, _scratch.places), strict=True):
        yield slice(lo, min(lo + BLOCK, span.size)), places


def _tensor(array: NDArray[np.float32] | NDArray[np.int32]) -> torch.Tensor:
    """Return a tensor over the same memory. Torch warns of arrays that are read-only: here nobody writes to those."""
    if not array.flags.writeable:
        pointer = {**array.__array_interface__, "data": (array.ctypes.data, False)}
        array = np.asarray(type("Alias", (), {"__array_interface__": pointer, "array": array})())
    return torch.from_numpy(array)
