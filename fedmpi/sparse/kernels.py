"""Pack, expand, copy and merge: the arithmetic of an exchange, by the fastest implementation that this machine has.

Every implementation (:mod:`fedmpi.sparse.backend`) gives the same bits.

A range ``lo <= i < hi`` of the flat vector starts at a multiple of 64 and ends at one or at the vector's end. Dense
arrays may be the whole vector (float32[N]) or just the range (float32[hi - lo]); values are those of the range.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import WireError
from fedmpi.sparse.backend import active, implementation
from fedmpi.sparse.mask import Mask

__all__ = ["active", "expand", "masked_copy", "merge_range", "operand", "pack"]

Values = NDArray[np.float32]


def pack(theta: Values, mask: Mask, lo: int = 0, hi: int | None = None, out: Values | None = None) -> Values:
    """Return the kept entries of a range, float32[count], in ``out`` if given.

    Raises
    ------
    WireError
        An array does not fit the range.
    """
    hi = _range(mask, lo, hi)
    dense = _dense(theta, "theta", mask, lo, hi)
    out = np.empty(mask.count(lo, hi), np.float32) if out is None else _vector(out, "out")
    module = implementation()
    try:
        module.pack(dense, operand(module, mask, lo, hi), out)
    except ValueError as error:
        raise WireError(f"out has {out.size} entries, the mask keeps {mask.count(lo, hi)} in {lo}:{hi}") from error
    return out


def expand(values: Values, mask: Mask, lo: int = 0, hi: int | None = None, out: Values | None = None) -> Values:
    """Return the range with ``values`` (float32[count]) at the kept entries and zeros elsewhere, in ``out`` if given.

    Raises
    ------
    WireError
        An array does not fit the range.
    """
    hi = _range(mask, lo, hi)
    target = np.empty(hi - lo, np.float32) if out is None else _dense(out, "out", mask, lo, hi)
    _vector(values, "values")
    module = implementation()
    try:
        module.expand(values, operand(module, mask, lo, hi), target)
    except ValueError as error:
        raise WireError(f"{values.size} values, the mask keeps {mask.count(lo, hi)} in {lo}:{hi}") from error
    return target if out is None else out


def masked_copy(theta: Values, mask: Mask, lo: int = 0, hi: int | None = None, out: Values | None = None) -> Values:
    """Return the range with zeros where nothing is kept, in ``out`` if given: `pack` and `expand` in one pass.

    ``out`` may be ``theta``, but must not overlap it otherwise.

    Raises
    ------
    WireError
        An array does not fit the range.
    """
    hi = _range(mask, lo, hi)
    dense = _dense(theta, "theta", mask, lo, hi)
    target = np.empty(hi - lo, np.float32) if out is None else _dense(out, "out", mask, lo, hi)
    implementation().masked_copy(dense, mask.words[lo // 64 : (hi + 63) // 64], target)
    return target if out is None else out


def merge_range(
    old: Values,
    values: Sequence[Values],
    masks: Sequence[Mask],
    weights: Values,
    lo: int = 0,
    hi: int | None = None,
    out: Values | None = None,
    *,
    skip_pruned: bool,
) -> Values:
    """Return the weighted mean of K clients over a range, in ``out`` if given (which may be ``old``).

    After an error the content of ``out`` is undefined.

    Parameters
    ----------
    old
        The global vector before: it stays where no client kept the entry, or where the holders' weights are all 0.
    values
        For each client the values of the range, float32[count_k].
    masks
        For each client the whole mask; holders are decided by it, never by a value.
    weights : float32[K]
        Finite and not negative.
    skip_pruned
        True is the sparsity-aware mean, sum_k w_k m_k v_k / sum_k w_k m_k per entry. False counts pruned entries as 0
        with their client's full weight: sum_k w_k m_k v_k / sum_k w_k.

    Notes
    -----
    float32 throughout; both sums run in client order, each term multiplied and then added (no fused operation), so any
    division into ranges gives the same bits. NaN and infinite values pass into the result and are never hidden.

    Raises
    ------
    WireError
        No clients, an array that does not fit the range, weights that are negative or not finite, or, when pruned
        entries count as 0, weights that are all 0.
    """
    if not masks or len(values) != len(masks):
        raise WireError(
            f"a merge needs as many masks as value arrays and at least one, got {len(masks)}, {len(values)}"
        )
    if len({mask.size for mask in masks}) > 1:
        raise WireError(f"masks of {[mask.size for mask in masks]} entries do not go together")
    _check_weights(weights, len(masks), skip_pruned=skip_pruned)
    hi = _range(masks[0], lo, hi)
    dense = _dense(old, "old", masks[0], lo, hi)
    target = np.empty(hi - lo, np.float32) if out is None else _dense(out, "out", masks[0], lo, hi)
    parts = [_vector(part, f"values {client}") for client, part in enumerate(values)]
    module = implementation()
    operands = [operand(module, mask, lo, hi) for mask in masks]
    try:
        module.merge(dense, parts, operands, weights, target, skip_pruned=skip_pruned)
    except ValueError as error:
        raise WireError(_misfit(parts, masks, lo, hi)) from error
    return target if out is None else out


def operand(module: ModuleType, mask: Mask, lo: int, hi: int) -> Any:  # noqa: ANN401 - each implementation's own
    """Return what the implementation ``module`` takes for a range of a mask: its words, or a span with positions."""
    span = getattr(module, "Span", None)
    return mask.words[lo // 64 : (hi + 63) // 64] if span is None else span(mask, lo, hi)


def _misfit(values: Sequence[Values], masks: Sequence[Mask], lo: int, hi: int) -> str:
    """Name the first client whose values and mask do not go together (counting is left to the kernels till then)."""
    for client, (part, mask) in enumerate(zip(values, masks, strict=True)):
        if part.size != mask.count(lo, hi):
            return f"client {client}: {part.size} values, its mask keeps {mask.count(lo, hi)} in {lo}:{hi}"
    return f"values and masks do not go together in {lo}:{hi}"


def _range(mask: Mask, lo: int, hi: int | None) -> int:
    hi = mask.size if hi is None else hi
    if not 0 <= lo <= hi <= mask.size or lo % 64 or (hi % 64 and hi != mask.size):
        raise WireError(f"range {lo}:{hi} of {mask.size} entries: both ends are multiples of 64 or the vector's end")
    return hi


def _dense(array: Values, name: str, mask: Mask, lo: int, hi: int) -> Values:
    if array.size == mask.size != hi - lo:
        array = array[lo:hi]
    return _fit(array, name, hi - lo)


def _fit(array: Values, name: str, size: int) -> Values:
    if array.shape != (size,):
        raise WireError(f"{name} has shape {list(array.shape)}, the range needs [{size}]")
    return _vector(array, name)


def _vector(array: Values, name: str) -> Values:
    if array.dtype != np.float32 or array.ndim != 1 or not array.flags.c_contiguous:
        raise WireError(f"{name} is {array.dtype}{list(array.shape)}, a contiguous float32 vector is needed")
    return array


def _check_weights(weights: Values, clients: int, *, skip_pruned: bool) -> None:
    _fit(weights, "weights", clients)
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise WireError(f"weights {weights.tolist()} are not all finite and >= 0")
    if not skip_pruned and not weights.any():
        raise WireError("weights are all 0 and pruned entries count: there is no mean")
