"""Who takes part in a round: a draw from the seed and the number of the round, the same on every rank."""

from fedmpi.config import RunConfig
from fedmpi.seeding import Stream, generator


def participants(config: RunConfig, clients: int, round: int) -> tuple[int, ...]:
    """Return the clients of a round, ascending; *not collective*, no rank asks another.

    ``federation.fraction`` of them, rounded to the nearest number (half upwards), and at least one. Every set of that
    size is equally likely, and rounds are drawn independently of each other and of the number of ranks.
    """
    count = max(1, int(config.federation.fraction * clients + 0.5))
    if count == clients:
        return tuple(range(clients))
    drawn = generator(config.run.seed, Stream.CLIENT_SAMPLING, round=round).choice(clients, count, replace=False)
    return tuple(sorted(drawn.tolist()))
