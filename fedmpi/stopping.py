"""When to stop a run that is to be resumed: signals and time limits.

A handler only notes the signal. The ranks look at their notes together after every round, and each for itself before
every client and batch, where a round that has outlived the grace time is given up.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from fedmpi.errors import Stopped

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
TIME_LIMIT = 1000
"""The wish to stop for lack of time, beside the numbers of signals."""
ECHO_SECONDS = 5.0
"""A second signal so soon is the first one again, on another way: launchers forward what SLURM sends to all."""
LONGER = 1.1
"""How much longer than the longest one so far the next round may take."""


class Stopper:
    """Knows whether this rank wants the run to stop.

    Parameters
    ----------
    grace
        Seconds that a round may go on after a signal, and that are kept free before a time limit.
    wall_time
        Seconds from now on after which the process should have ended; 0 = no limit.
    environment, clock
        Where SLURM tells its end time (seconds since 1970), and the time now.
    """

    def __init__(
        self,
        grace: float,
        wall_time: float = 0.0,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._grace, self._clock = grace, clock
        limits = [float(environment[name]) for name in ("SLURM_JOB_END_TIME",) if environment.get(name, "").isdigit()]
        self._end = min([*limits, *([clock() + wall_time] if wall_time else [])], default=math.inf)
        self._signal, self._since = 0, math.inf
        self._folder, self._done, self._rounds, self._longest = "", 0, 0, 0.0
        self._begun = clock()

    @contextmanager
    def listening(self) -> Iterator["Stopper"]:
        """Note signals while the context lasts; a second one ends the process at once. Main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self._signal:
            self._signal, self._since = number, self._clock()
        elif self._clock() > self._since + ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def begin(self, folder: str, done: int, rounds: int) -> None:
        """Note where the run is written, how many rounds are done, and of how many."""
        self._folder, self._done, self._rounds, self._begun = folder, done, rounds, self._clock()

    def finished_round(self) -> int:
        """Note that a round is done; return this rank's wish: 0, a signal's number, or `TIME_LIMIT`."""
        now = self._clock()
        self._longest = max(self._longest, now - self._begun)
        self._begun, self._done = now, self._done + 1
        return self.wish()

    def wish(self) -> int:
        """Return 0 to begin the next round, else a signal's number or `TIME_LIMIT`: it would not be done in time."""
        if self._signal:
            return self._signal
        return TIME_LIMIT if self._clock() + LONGER * self._longest > self._end - self._grace else 0

    def interrupt(self) -> None:
        """Raise ``Stopped`` when the round must be given up: the grace time is over, or the time limit near."""
        late = self._clock() > self._end - self._grace
        if late or self._clock() > self._since + self._grace:
            wish = self._signal or TIME_LIMIT
            raise self.stopped(wish, f"round {self._done + 1} of {self._rounds} was given up; ")

    def stopped(self, wish: int, what: str = "") -> Stopped:
        """Return the error that ends the run, with how to continue."""
        reason = "the time limit is near" if wish == TIME_LIMIT else f"{signal.Signals(wish).name} came"
        done = f"{self._done} of {self._rounds} rounds are done"
        return Stopped(f"{reason}; {what}{done}; continue with: fedmpi train --resume {self._folder}")
