"""Random generators as a function of what they are for; nothing in fedmpi draws from a global generator.

A generator is addressed by (seed, stream, client, round, step). So the draws of a client do not depend on the rank that
hosts it, on the other clients, or on whether the run was resumed.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the numbers are drawn for. Values are part of the results: append, never renumber."""

    MODEL_INIT = 0
    SYNTHETIC = 1
    DATA_SPLIT = 2
    HOLDOUT = 3
    SAMPLER = 4
    AUGMENT = 5
    CLIENT_SAMPLING = 6


def sequence(seed: int, stream: Stream, *, client: int = 0, round: int = 0, step: int = 0) -> np.random.SeedSequence:
    """Return the seed sequence of one purpose; all arguments are non-negative integers."""
    return np.random.SeedSequence((seed, int(stream), client, round, step))


def generator(seed: int, stream: Stream, *, client: int = 0, round: int = 0, step: int = 0) -> np.random.Generator:
    """Return a fresh NumPy generator of one purpose."""
    return np.random.Generator(np.random.PCG64(sequence(seed, stream, client=client, round=round, step=step)))


def integer_seed(seed: int, stream: Stream, *, client: int = 0, round: int = 0, step: int = 0) -> int:
    """Return a 63-bit seed of one purpose, for libraries that take an integer (``torch.manual_seed``)."""
    state = sequence(seed, stream, client=client, round=round, step=step).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
