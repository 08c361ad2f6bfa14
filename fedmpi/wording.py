"""Numbers as people read them: shares, bytes, times. Imports nothing, so that help and plain tools can use it."""

import math


def percent(share: float) -> str:
    """Return a share as percent with one digit; ``--`` when it was not measured (NaN)."""
    return "--" if math.isnan(share) else f"{round(100 * share, 1) + 0.0:.1f}"  # + 0.0: never -0.0


def number(value: float, digits: int) -> str:
    """Return a number with so many digits; ``--`` when it was not measured (NaN)."""
    return "--" if math.isnan(value) else f"{value:.{digits}f}"


def size(count: float) -> str:
    """Return bytes in decimal units, as the field counts them (1 MB = 1e6)."""
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if abs(count) < 1000 or unit == "TB":
            break
    return f"{count:.{1 if unit in {'kB', 'MB'} else 2}f} {unit}"


def span(seconds: float) -> str:
    """Return a time as people say it, in seconds, minutes, hours or days."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
