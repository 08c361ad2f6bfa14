"""Parameter ranges in which values travel.

Many messages of about a megabyte move faster per byte than one of a hundred, let the server merge one range while the
next arrives, and never meet MPI's 2^31 limits.
"""

from itertools import pairwise

WORD = 64  # masks are packed in 64-bit words; ranges start at word borders
MAX_SEGMENT_BYTES = 64 << 20


def segments(size: int, segment_bytes: int) -> tuple[tuple[int, int], ...]:
    """Return ranges (lo, hi) that cover ``size`` float32 parameters, each at most ``segment_bytes`` when dense."""
    limit = min(segment_bytes, MAX_SEGMENT_BYTES)
    step = max(WORD, limit // 4 // WORD * WORD)
    return tuple(pairwise([*range(0, size, step), size])) if size else ()
