"""Interleaved timing: every variant once, then every variant again; medians, and ratios inside one turn."""

import time
from collections.abc import Callable, Mapping
from statistics import median

Times = dict[str, list[float]]


def interleaved(
    variants: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.process_time
) -> Times:
    """Return the seconds of each variant in each of ``repeats`` turns; one more turn before them is not counted.

    The default clock is the CPU time of this process: what others do on the machine hardly shows. It is right for one
    thread only.
    """
    times: Times = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, variant in variants.items():
            start = clock()
            variant()
            spent = clock() - start
            if turn:
                times[name].append(spent)
    return times


def middle(times: list[float]) -> float:
    """Return the median of ``times`` in seconds."""
    return median(times)


def ratio(times: list[float], base: list[float]) -> float:
    """Return the median of the ratios of two variants turn by turn, so that a slow minute hits both."""
    return median(a / b for a, b in zip(times, base, strict=True) if b > 0)
