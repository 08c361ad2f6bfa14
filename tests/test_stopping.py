"""When the stopper wants to stop, by a clock that the test moves."""

import os
import signal
import subprocess
import sys

import pytest

from fedmpi.errors import Stopped
from fedmpi.stopping import TIME_LIMIT, Stopper


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
    def test_a_signal_is_a_wish_and_after_the_grace_time_an_interruption(self, clock, number):
        stopper = Stopper(20.0, environment={}, clock=clock)
        stopper.begin("runs/x", 3, 12)
        with stopper.listening():
            assert stopper.wish() == 0
            os.kill(os.getpid(), number)
            assert stopper.wish() == number
            clock.now += 19.9
            stopper.interrupt()
            clock.now += 0.2
            with pytest.raises(Stopped) as caught:
                stopper.interrupt()
        assert str(caught.value) == (
            f"{number.name} came; round 4 of 12 was given up; 3 of 12 rounds are done; "
            "continue with: fedmpi train --resume runs/x"
        )

    def test_handlers_are_given_back(self):
        before = signal.getsignal(signal.SIGTERM)
        with Stopper(1.0, environment={}).listening():
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before

    @pytest.mark.parametrize(("pause", "code"), [(4.0, 0), (6.0, -signal.SIGTERM)])
    def test_a_second_one_ends_the_process_unless_it_is_an_echo(self, pause, code):
        program = (
            "import os, signal\n"
            "from fedmpi.stopping import Stopper\n"
            "now = [0.0]\n"
            "with Stopper(20.0, environment={}, clock=lambda: now[0]).listening():\n"
            "    os.kill(os.getpid(), signal.SIGUSR1)\n"
            f"    now[0] += {pause}\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
        assert done.returncode == code


class TestTimeLimits:
    def test_none_by_default(self, clock):
        stopper = Stopper(20.0, environment={}, clock=clock)
        clock.now += 1e9
        assert stopper.wish() == 0
        stopper.interrupt()

    @pytest.mark.parametrize(
        ("wall_time", "environment"),
        [(100.0, {}), (0.0, {"SLURM_JOB_END_TIME": "1100"}), (100.0, {"SLURM_JOB_END_TIME": "5000"})],
    )
    def test_a_round_that_would_not_be_done_in_time_is_not_begun(self, clock, wall_time, environment):
        stopper = Stopper(20.0, wall_time, environment, clock)
        stopper.begin("runs/x", 0, 12)
        clock.now = 1030.0  # the first round took 30 s: 1030 + 1.1 * 30 < 1100 - 20
        assert stopper.finished_round() == 0
        clock.now = 1060.0
        assert stopper.finished_round() == TIME_LIMIT
        assert str(stopper.stopped(TIME_LIMIT)).startswith("the time limit is near; 2 of 12 rounds are done; continue")

    def test_a_round_that_takes_too_long_is_given_up(self, clock):
        stopper = Stopper(20.0, 100.0, {}, clock)
        stopper.begin("runs/x", 0, 12)
        clock.now = 1079.0
        stopper.interrupt()
        clock.now = 1081.0
        with pytest.raises(Stopped, match=r"the time limit is near; round 1 of 12 was given up; 0 of 12"):
            stopper.interrupt()

    @pytest.mark.parametrize("value", ["", "never", "-5"])
    def test_an_end_time_that_is_none_is_ignored(self, clock, value):
        assert Stopper(20.0, 0.0, {"SLURM_JOB_END_TIME": value}, clock).wish() == 0
