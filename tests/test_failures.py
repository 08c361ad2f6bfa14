"""What goes wrong in a job of three ranks: who says what, once, with which exit code, how soon; and what is left."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from fedmpi.errors import SchemaError
from fedmpi.record import open_run
from tests import mpi
from tests.tiny import write_config

pytestmark = [pytest.mark.mpi, mpi.needs_mpirun]
DRIVER = Path(__file__).with_name("driver.py")
HOST = socket.gethostname()
# Seconds from the accident to the end of the job, at most: a busy machine's, and far from the deadline of 200.
SOON = 60.0


@pytest.fixture
def train(tmp_path):
    """Return a function that runs the tiny federation on three ranks, with accidents and changes."""
    config = write_config(tmp_path)

    def start(*accidents: str, overrides: tuple[str, ...] = (), ranks: int = 3) -> mpi.Job:
        sets = [word for override in overrides for word in ("--set", override)]
        argv = [DRIVER, *accidents, "--", "train", config, "--out", tmp_path / "run", *sets]
        return mpi.run(ranks, argv, env={"DRIVER_OUT": str(tmp_path)})

    return start


def last_commit(tmp_path: Path) -> float:
    return (tmp_path / "run" / "run.h5").stat().st_mtime


def check_left_behind(tmp_path: Path, *, rounds: int, status: str) -> None:
    """Look at what a failed run leaves: the committed rounds, whole, and nothing that looks like a result."""
    with open_run(tmp_path / "run") as record:
        assert (record.rounds, record.status) == (rounds, status)
        assert record["clients/density"].shape == (rounds, 2)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not list((tmp_path / "run").rglob("*.safetensors"))


class TestInsideAStage:
    def test_a_bug_on_one_client(self, train, tmp_path):
        job = train("bug:2")
        assert job.code == 70, str(job)
        story = f"local training: client 1 on rank 2 ({HOST}): ZeroDivisionError: the injected bug"
        assert f"fedmpi: error: {story}" in job.lines()
        assert job.err.count("Traceback (most recent call last)") == 1
        assert "fedmpi: error (rank 2): this is a bug in fedmpi" in job.err or "this is a bug in fedmpi" in job.err
        assert len(job.lines()) == 2, str(job)
        check_left_behind(tmp_path, rounds=1, status="failed")

    def test_a_quiet_exit_on_one_client(self, train, tmp_path):
        job = train("quiet-exit:1")
        assert job.code == 70, str(job)
        assert f"local training: client 0 on rank 1 ({HOST}): RuntimeError: sys.exit(0) was called" in job.err
        check_left_behind(tmp_path, rounds=1, status="failed")

    def test_a_loss_that_is_not_finite(self, train, tmp_path):
        job = train(overrides=("loss.temperature=1e-40",))
        assert job.code == 1, str(job)
        (line,) = job.lines()
        where = re.escape(f"client 0 on rank 1 ({HOST})")
        assert re.match(rf"fedmpi: error: local training: {where}: the loss is not finite in round 0, epoch 0", line)
        assert line.endswith("lower local.lr (1 more rank failed too)")
        assert "Traceback" not in job.err
        check_left_behind(tmp_path, rounds=0, status="failed")

    def test_an_update_that_the_server_refuses(self, train, tmp_path):
        job = train("nan-norm:2")
        assert job.code == 1, str(job)
        (line,) = job.lines()
        assert "update refused: client 1: its norm is nan (comm.bad_update and comm.norm_limit decide)" in line
        check_left_behind(tmp_path, rounds=1, status="failed")

    def test_or_leaves_out(self, train, tmp_path):
        job = train("nan-norm:2", overrides=("comm.bad_update=skip",))
        assert job.code == 0, str(job)
        with open_run(tmp_path / "run") as record:
            assert record["clients/skipped"].tolist() == [[0, 0], [0, 1]]
            assert record["clients/weight"][1].tolist() == [1.0, 0.0]

    def test_nobody_waits_for_those_who_still_work(self, train, tmp_path):
        job = train("bug:2", "sleep:1")
        assert job.code == 70, str(job)
        assert job.err.count("Traceback (most recent call last)") == 1
        assert f"local training: client 1 on rank 2 ({HOST}): ZeroDivisionError: the injected bug" in job.err
        assert time.time() - last_commit(tmp_path) < SOON
        check_left_behind(tmp_path, rounds=1, status="failed")

    def test_one_that_never_comes_is_named_at_the_deadline(self, train, tmp_path):
        job = train("sleep:2", "time-flies:0", overrides=("comm.deadline_s=300",))
        assert job.code == 1, str(job)
        story = "no answer within 300 s: local training: client 1 on rank 2 (comm.deadline_s sets the limit)"
        assert job.lines() == [f"fedmpi: error: {story}"]
        assert time.time() - last_commit(tmp_path) < SOON
        check_left_behind(tmp_path, rounds=1, status="failed")


class TestOutsideAStage:
    """Where the others cannot be told: the failing rank speaks, and ends the job."""

    @pytest.mark.parametrize(("accident", "rank"), [("bug-outside", 0), ("bug-outside", 2)])
    def test_a_bug(self, train, tmp_path, accident, rank):
        job = train(f"{accident}:{rank}")
        assert job.code == 70, str(job)
        assert f"fedmpi: error (rank {rank}): this is a bug in fedmpi; please report these lines:" in job.lines()
        assert job.err.count("Traceback (most recent call last)") == 1
        assert "ZeroDivisionError: the injected bug" in job.err
        assert time.time() - last_commit(tmp_path) < SOON
        with open_run(tmp_path / "run") as record:
            assert record.rounds == 1

    def test_a_quiet_exit(self, train, tmp_path):
        job = train("quiet-exit-outside:2")
        assert job.code not in (0, -9), str(job)
        assert job.lines() == ["fedmpi: error (rank 2): sys.exit(0) was called in the middle of the run"]
        assert time.time() - last_commit(tmp_path) < SOON

    @pytest.mark.parametrize(
        ("accident", "uplink", "text"),
        [
            ("wrong-round", "messages", "round: got 2, expected 1"),
            ("wrong-epoch", "messages", "client 1: the mask builds on epoch 2, expected 1"),
            ("damaged-values", "messages", r"the update of client 1: the checksum of \d+ values does not match"),
            ("damaged-values", "sharded", r"the update of client 1: the checksum of \d+ values does not match"),
            ("damaged-values", "hierarchical", r"the update of client 1: the checksum of \d+ values does not match"),
        ],
    )
    def test_a_message_that_is_not_right_is_refused_by_the_server(self, train, tmp_path, accident, uplink, text):
        job = train(f"{accident}:2", "two-nodes", overrides=("crr.enabled=false", f"comm.uplink={uplink}"))
        assert job.code == 1, str(job)
        (line,) = job.lines()
        assert re.match(rf"fedmpi: error \(rank 0\): {text}", line), str(job)
        assert "Traceback" not in job.err
        assert time.time() - last_commit(tmp_path) < SOON
        check_left_behind(tmp_path, rounds=1, status="failed")


class TestKilled:
    def test_the_job_ends_and_the_record_is_whole(self, tmp_path):
        config = write_config(tmp_path)
        argv = [DRIVER, "slow", "--", "train", config, "--out", tmp_path / "run", "--set", "federation.rounds=500"]
        with mpi.started(3, argv, env={"DRIVER_OUT": str(tmp_path)}) as job:
            committed = self.wait_for_rounds(tmp_path / "run", 2)
            os.kill(int((tmp_path / "pid-2").read_text()), signal.SIGKILL)
            result = job.wait(SOON)
        assert result.code != 0, str(result)
        with open_run(tmp_path / "run") as record:
            assert record.status == "running"  # nobody was left to change it
            assert record.rounds >= committed
            assert (record["clients/density"] > 0).all()
            assert record.error == ""

    @staticmethod
    def wait_for_rounds(folder: Path, rounds: int) -> int:
        """Return the number of committed rounds once there are enough; looks as any reader would."""
        end = time.monotonic() + 200
        while time.monotonic() < end:
            try:
                with open_run(folder) as record:
                    if record.rounds >= rounds:
                        return record.rounds
            except SchemaError:
                pass
            time.sleep(0.1)
        pytest.fail("no rounds after 200 s")
