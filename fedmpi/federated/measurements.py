"""What a client measures in a round, by name, for the run file."""

import time
from dataclasses import dataclass, field


@dataclass
class Measurements:
    """Named numbers of one client and round for the run file; a missing one is NaN there."""

    values: dict[str, float] = field(default_factory=dict)

    def time(self, name: str) -> "Stopwatch":
        """Return a context that adds its duration to ``seconds_<name>``."""
        return Stopwatch(self, f"seconds_{name}")


class Stopwatch:
    """Adds wall seconds to a measurement."""

    def __init__(self, measurements: Measurements, name: str) -> None:
        self._values, self._name = measurements.values, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._values[self._name] = self._values.get(self._name, 0.0) + time.perf_counter() - self._start
