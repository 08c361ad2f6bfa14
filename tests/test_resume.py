"""Runs that end early and go on: what comes out is what would have come out, to the bit."""

import hashlib
import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mpi4py import MPI

from fedmpi.cli import cli
from fedmpi.config import load_config
from fedmpi.console import View
from fedmpi.errors import ConfigError, SchemaError, Stopped
from fedmpi.federated.client import Client
from fedmpi.record import RecordError, checkpoint, open_run
from fedmpi.record.checkpoint import CheckpointError
from fedmpi.reid import training
from fedmpi.stopping import Stopper
from fedmpi.train import train
from tests import mpi
from tests.tiny import write_config

DRIVER = Path(__file__).with_name("driver.py")
ROUNDS = 5
PATIENCE = 200.0  # seconds for what takes two on a machine of one's own
# Half of these rounds prune and with the bar of tau2 some recover, so that all of the state matters.
CHANGES = (f"federation.rounds={ROUNDS}", "pruning.target=0.9", "crr.tau1=0.05", "crr.tau2=0.0")
SCIENCE = ("clients/density", "clients/map", "clients/crr_decision", "clients/loss_total", "clients/weight")

SETS = [word for change in CHANGES for word in ("--set", change)]


class Crash(Exception):
    """What ends a run in these tests."""


def models(folder: Path) -> dict[str, str]:
    """Return the sha256 of every model file."""
    paths = sorted(folder.rglob("*.safetensors"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def science(folder: Path) -> dict[str, bytes]:
    """Return all that a run file says, but for wall times."""
    with open_run(folder) as run:
        names = [n for n in run.names() if "seconds" not in n and not n.endswith("/started") and n != "messages/table"]
        content = {name: np.asarray(run[name]) for name in names}
        timeless = [name for name in run.messages.dtype.names if name not in {"seconds", "start"}]
        content |= {f"messages/{name}": run.messages[name] for name in timeless}
    return {name: repr(a.tolist()).encode() if a.dtype == object else a.tobytes() for name, a in content.items()}


def figures(folder: Path) -> dict:
    """Return the summary without what the machine decides."""
    summary = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k not in {"seconds", "peak_rss_bytes", "resumed_after", "ranks"}}


def checkpoints(folder: Path) -> list[Path]:
    return checkpoint.found(folder / "checkpoints")


def wishing(*wishes: int) -> Stopper:
    """Return a stopper that wants this, before the first round and after each."""
    stopper, answers = Stopper(20.0, environment={}), list(wishes)
    stopper.wish = lambda: answers.pop(0)
    return stopper


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    mpi.succeed(None, [DRIVER, "--", "train", write_config(folder), "--out", folder / "run", *SETS])
    return folder / "run"


@pytest.fixture
def go(tiny_config, tiny_net, tmp_path):
    """Return a function that trains in this process; ``resume`` and further changes as on the command line."""

    def start(*more: str, resume: str | None = None, stopper: Stopper | None = None, out: Path | None = None):
        config = tiny_config(*CHANGES, *more)
        target = None if resume not in {None, "auto"} else out or tmp_path / "run"
        return train(MPI.COMM_SELF, config, target, View(progress=False), resume=resume, stopper=stopper)

    return start


@pytest.fixture
def crash(monkeypatch, go, tmp_path):
    """Return a function that trains until a client begins the given round; returns the run's folder."""

    def until(number: int, *more: str) -> Path:
        original = Client.train

        def fail(client, state, received, round, log, room=None):
            if round == number and client.index == 1:
                raise Crash
            return original(client, state, received, round, log, room)

        with monkeypatch.context() as patch:
            patch.setattr(Client, "train", fail)
            with pytest.raises(Crash):
                go(*more)
        return tmp_path / "run"

    return until


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory, whole):
    """Return the folder of a job that failed in the last round."""
    folder = tmp_path_factory.mktemp("crashed")
    argv = ["train", write_config(folder), "--out", folder / "run", *SETS]
    assert mpi.run(None, [DRIVER, "bug-in-the-last-round", "--", *argv]).code == 70
    return folder / "run"


@pytest.fixture
def crashed(left_behind, tmp_path):
    """Return a copy of it."""
    return Path(shutil.copytree(left_behind, tmp_path / "run"))


class TestTheSameBits:
    @pytest.mark.parametrize(("number", "every"), [(0, 1), (1, 1), (4, 3)])
    def test_after_a_crash_in_any_round(self, whole, crash, go, number, every):
        folder = crash(number, f"checkpoint.every={every}")
        done = number - number % every
        assert [path.name[:12] for path in checkpoints(folder)[:1]] == ([f"round-{done:06d}"] if done else [])
        summary = go(f"checkpoint.every={every}", resume=str(folder))
        assert models(folder) == models(whole)
        assert science(folder) == science(whole)
        assert figures(folder) == figures(whole)
        assert summary["resumed_after"] == done
        with open_run(folder) as run:
            assert (run.status, run.error) == ("finished", "")
            assert [items["after_rounds"] for items in run.resumes] == [str(done)]
        assert not (folder / "checkpoints").exists()

    def test_with_values_coded_against_what_was_sent_before(self, crash, go, tmp_path):
        """Both ends remember the last model then; with it lost, the bytes would be others."""
        go("wire.values=lossless", out=tmp_path / "reference")
        folder = crash(3, "wire.values=lossless")
        go("wire.values=lossless", resume=str(folder))
        assert models(folder) == models(tmp_path / "reference")
        assert science(folder) == science(tmp_path / "reference")

    def test_the_state_that_is_lost_would_have_mattered(self, whole):
        """The run recovers and prunes, so a resume that forgot bar, masks or clusters would show."""
        with open_run(whole) as run:
            decisions = run["clients/crr_decision"]
        assert {1, 3} <= set(decisions[2:].ravel().tolist())

    @pytest.mark.parametrize("name", ["crr_best", "labels", "mask", "theta", "buffers"])
    def test_every_part_of_a_checkpoint_matters(self, whole, crashed, go, name):
        """Oracle of the test above: with one part spoilt the result is another one (or nothing fits any more)."""
        newest = checkpoint.read(checkpoints(crashed)[0])
        arrays = {key: value.copy() for key, value in newest.arrays.items()}
        for key in [key for key in arrays if key.split("/")[-1] == name]:
            arrays[key] = spoilt(name, arrays[key])
        checkpoint.write(crashed / "checkpoints", 4, arrays, newest.facts, keep=1)
        go(resume=str(crashed))
        assert science(crashed) != science(whole)

    def test_after_the_last_round(self, whole, crash, go, monkeypatch):
        """Killed when all rounds are done and the models are not yet written."""

        def fail(*_):
            raise Crash

        with monkeypatch.context() as patch:
            patch.setattr("fedmpi.journal.Journal.save_models", fail)
            folder = crash(99)
        go(resume=str(folder))
        assert models(folder) == models(whole)
        assert science(folder) == science(whole)
        assert figures(folder) == figures(whole)


def spoilt(name: str, array: np.ndarray) -> np.ndarray:
    """Return the array of another, but possible, state."""
    if name == "crr_best":
        return array - 1.0
    if name == "labels":
        return np.roll(array, 7)
    if name in {"mask", "good"}:
        full = np.full_like(array, 255)
        full[-1] = array[-1] | ((1 << (2072 % 8 or 8)) - 1)
        return full
    return array * np.float32(1.01)


class TestDamagedCheckpoints:
    @pytest.mark.parametrize("harm", [damage, lambda path: path.write_bytes(path.read_bytes()[:-100])])
    def test_the_previous_one_is_used(self, whole, crashed, go, caplog, harm):
        folder = crashed
        newest, previous = checkpoints(folder)
        harm(newest)
        summary = go(resume=str(folder))
        (warning,) = [r.getMessage() for r in caplog.records if "checkpoint" in r.getMessage()]
        assert warning.startswith(f"warning: refused checkpoint {newest}: damaged")
        assert warning.endswith("; using the one before it")
        assert summary["resumed_after"] == 3
        assert models(folder) == models(whole)
        assert science(folder) == science(whole)
        assert previous.name.startswith("round-000003")

    def test_none_whole_is_an_error_and_nothing_is_changed(self, crashed, go):
        folder = crashed
        for path in checkpoints(folder):
            damage(path)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(CheckpointError, match=r"all 2 checkpoints are damaged; start the run anew"):
            go(resume=str(folder))
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    def test_a_full_disk_leaves_the_last_whole_state(self, whole, go, monkeypatch, tmp_path):
        original = checkpoint._blocks

        def full(arrays, facts):
            if facts["rounds"] == "3":
                raise OSError(28, "No space left on device")
            return original(arrays, facts)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_blocks", full)
            with pytest.raises(RecordError, match=r"round-000003: disk full or quota reached, free space there and"):
                go()
        folder = tmp_path / "run"
        with open_run(folder) as run:
            assert (run.status, run.rounds) == ("failed", 3)
        go(resume=str(folder))
        assert models(folder) == models(whole)


class TestRefusals:
    def test_another_configuration(self, crashed, go):
        folder = crashed
        with pytest.raises(ConfigError) as caught:
            go("run.seed=3", "kll.weight=0.5", resume=str(folder))
        assert "run.seed: 0 then, 3 now; kll.weight: 0.13 then, 0.5 now" in str(caught.value)

    def test_a_checkpoint_of_another_run(self, crashed, go):
        folder = crashed
        (path, *_) = checkpoints(folder)
        read = checkpoint.read(path)
        facts = {**read.facts, "config": read.facts["config"].replace("seed: 0", "seed: 8")}
        checkpoint.write(folder / "checkpoints", 4, read.arrays, facts, keep=9)
        with pytest.raises(ConfigError, match=r"run\.seed: 8 then, 0 now"):
            go(resume=str(folder))

    def test_no_run(self, go, tmp_path):
        with pytest.raises(ConfigError, match="nowhere is no folder: not a run that can be resumed"):
            go(resume=str(tmp_path / "nowhere"))
        with pytest.raises(ConfigError, match=r"holds no config\.yaml: not a run"):
            go(resume=str(tmp_path))

    def test_fewer_rounds_recorded_than_in_the_checkpoint(self, crashed, go):
        from fedmpi.record import RunWriter

        folder = crashed
        RunWriter.reopen(folder / "run.h5", 1).close("failed")
        with pytest.raises(SchemaError, match="holds 1 committed rounds and cannot be resumed after 4"):
            go(resume=str(folder))

    def test_data_that_have_changed(self, crashed, go):
        from fedmpi.errors import DataError

        folder = crashed
        read = checkpoint.read(checkpoints(folder)[0])
        arrays = {**read.arrays, "client1/labels": read.arrays["client1/labels"][1:]}
        checkpoint.write(folder / "checkpoints", 4, arrays, read.facts, keep=1)
        with pytest.raises(DataError, match=r"knows \d+ training images, there are \d+: the data have changed"):
            go(resume=str(folder))

    def test_a_folder_beside_the_run(self, tmp_path):
        done = CliRunner().invoke(cli, ["train", "--resume", str(tmp_path), "--out", str(tmp_path / "b")])
        assert done.exit_code == 2
        assert "--resume RUN writes into RUN: leave --out away" in done.output


class TestFinished:
    def test_says_so_and_changes_nothing(self, go, tmp_path, capsys):
        go()
        folder = tmp_path / "run"
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        for resume in (str(folder), "auto"):
            assert go(resume=resume)["global_sha256"] == models(folder)["global.safetensors"]
            assert f"run/ is finished: all {ROUNDS} rounds are done" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


class TestAuto:
    @pytest.fixture(autouse=True)
    def here(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)

    @pytest.fixture
    def auto(self, tiny_config, tiny_net):
        def start(*more: str, stopper=None):
            config = tiny_config("federation.rounds=2", *more)
            return train(MPI.COMM_SELF, config, None, View(progress=False), resume="auto", stopper=stopper)

        return start

    def stop(self, auto, *more: str) -> None:
        """Leave a run that was stopped after its first round."""
        stopper = wishing(0, 15)
        with pytest.raises(Stopped):
            auto(*more, stopper=stopper)

    def runs(self) -> list[str]:
        return sorted(path.name for path in Path("runs").iterdir() if (path / "summary.json").exists())

    def test_begins_goes_on_and_begins_anew(self, auto):
        self.stop(auto)
        (folder,) = Path("runs").iterdir()
        assert auto()["resumed_after"] == 1
        assert self.runs() == [folder.name]
        assert auto()["resumed_after"] is None  # the first one is finished
        assert len(self.runs()) == 2

    def test_passes_over_other_configurations_and_names(self, auto):
        self.stop(auto, "run.seed=1")
        self.stop(auto, "run.name=tiny-b")
        assert auto()["resumed_after"] is None
        assert auto("run.seed=1")["resumed_after"] == 1
        assert auto("run.name=tiny-b")["resumed_after"] == 1
        assert len(self.runs()) == 3

    def test_passes_over_a_run_that_another_job_is_at(self, auto, monkeypatch):
        self.stop(auto)

        class Held:
            def __init__(self, path):
                raise RecordError("another process writes this run")

        with monkeypatch.context() as patch:
            patch.setattr("fedmpi.resume.WriterLock", Held)
            assert auto()["resumed_after"] is None
        assert len(list(Path("runs").iterdir())) == 2


class TestStop:
    def test_between_rounds_writes_a_checkpoint_that_was_not_due(self, whole, go, tmp_path):
        stopper = wishing(0, 0, 0, 10)
        with pytest.raises(Stopped) as caught:
            go("checkpoint.every=100", stopper=stopper)
        folder = tmp_path / "run"
        assert str(caught.value) == (
            f"SIGUSR1 came; 3 of {ROUNDS} rounds are done; continue with: fedmpi train --resume {folder}"
        )
        with open_run(folder) as run:
            assert (run.status, run.rounds) == ("stopped", 3)
            assert run.error == str(caught.value)
        assert go(resume=str(folder))["resumed_after"] == 3
        assert science(folder) == science(whole)

    def test_in_the_middle_of_an_epoch(self, whole, go, tmp_path, monkeypatch):
        """Between two batches: the signal comes within the first of two, whose end is after the grace time."""
        now, steps, step = [0.0], [], training.Stepper.step

        def slow(stepper, loss):
            step(stepper, loss)
            steps.append(0)
            if len(steps) == 4:  # round 1 takes three, two of the first client and one of the second
                signal.raise_signal(signal.SIGUSR1)
                now[0] += 20.1

        with monkeypatch.context() as patch, Stopper(20.0, environment={}, clock=lambda: now[0]).listening() as stopper:
            patch.setattr(training.Stepper, "step", slow)
            with pytest.raises(Stopped, match=r"SIGUSR1 came; round 2 of 5 was given up; 1 of 5 rounds are done"):
                go(stopper=stopper)
        assert len(steps) == 4
        folder = tmp_path / "run"
        assert go(resume=str(folder))["resumed_after"] == 1
        assert science(folder) == science(whole)

    def test_a_wish_in_the_last_round_does_not_stop_what_is_done(self, go):
        assert go(stopper=wishing(*[0] * ROUNDS, 10))["rounds"] == ROUNDS


@pytest.mark.mpi
@pytest.mark.slow
@mpi.needs_mpirun
class TestRealJobs:
    """The command line, real ranks, real signals."""

    def train(self, tmp_path: Path) -> list[object]:
        return ["train", write_config(tmp_path), "--out", tmp_path / "run", *SETS]

    def wait_for(self, folder: Path, rounds: int) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                with open_run(folder) as run:
                    if run.rounds >= rounds:
                        return
            except SchemaError:
                pass
            time.sleep(0.02)
        pytest.fail(f"not {rounds} rounds after {PATIENCE} s")

    def stopped_in_round_2(self, tmp_path: Path, *more: str, hold: str = "hold") -> mpi.Job:
        """Return a job that got a signal while all its clients were in the middle of their second round.

        The server is late at the end; nobody may end the job without it.
        """
        (tmp_path / "hold").touch()
        argv = [DRIVER, f"{hold}:1", "hold:2", "slow-close", "--", *self.train(tmp_path), *more]
        with mpi.started(3, argv, env={"DRIVER_OUT": str(tmp_path)}) as job:
            mpi.wait_for([tmp_path / "held-1", tmp_path / "held-2"], PATIENCE)
            job.process.send_signal(signal.SIGUSR1)
            return job.wait(PATIENCE)

    @pytest.mark.parametrize(("ranks", "again", "rounds"), [(3, 2, 0), (3, None, 1), (2, 3, 3)])
    def test_killed_and_resumed_with_another_number_of_ranks(self, whole, tmp_path, ranks, again, rounds):
        folder = tmp_path / "run"
        moment = random.Random(rounds).uniform(0.0, 0.6)  # somewhere in the round after those
        with mpi.started(
            ranks, [DRIVER, "slow", "--", *self.train(tmp_path)], env={"DRIVER_OUT": str(tmp_path)}
        ) as job:
            self.wait_for(folder, rounds)
            time.sleep(moment)
            job.kill()
        with open_run(folder) as run:
            kept = run.rounds
            before = run["clients/density"].tolist()
        assert kept >= rounds
        mpi.succeed(again, [DRIVER, "--", "train", "--resume", folder])
        assert models(folder) == models(whole)
        with open_run(folder) as run, open_run(whole) as reference:
            assert run.rounds == ROUNDS
            assert run["clients/density"][:kept].tolist() == before
            for name in SCIENCE:
                np.testing.assert_array_equal(run[name], reference[name])

    @pytest.mark.parametrize(
        ("first", "then"),
        [
            (("messages", "messages"), ("sharded", "shared")),
            (("sharded", "shared"), ("shared", "messages")),
            (("shared", "messages"), ("messages", "shared")),
        ],
    )
    def test_failed_after_round_1_and_resumed_with_another_uplink_and_downlink(self, whole, tmp_path, first, then):
        """Raw values, as coded ones are sent whatever the plan; the log tells shares by the means that come of them."""

        def by(uplink: str, downlink: str) -> list[str]:
            return [word for c in (f"uplink={uplink}", f"downlink={downlink}") for word in ("--set", f"comm.{c}")]

        folder, raw = tmp_path / "run", ["--set", "wire.values=raw"]
        assert mpi.run(3, [DRIVER, "bug:2", "--", *self.train(tmp_path), *raw, *by(*first)]).code == 70
        with open_run(folder) as run:
            assert (run.status, run.rounds) == ("failed", 1)
        mpi.succeed(3, [DRIVER, "--", "train", "--resume", folder, *by(*then)])
        assert models(folder) == models(whole)
        with open_run(folder) as run, open_run(whole) as reference:
            shares = run.messages[run.messages["direction"] == b"means"]
            for name in SCIENCE:
                np.testing.assert_array_equal(run[name], reference[name])
        sharded = {0} if first[0] == "sharded" else set(range(1, ROUNDS)) if then[0] == "sharded" else set()
        assert set(shares["round"].tolist()) == sharded

    def test_a_signal_stops_with_75_and_the_line_says_how_to_go_on(self, whole, tmp_path):
        folder = tmp_path / "run"
        done = self.stopped_in_round_2(tmp_path, "--set", "checkpoint.grace_s=600")
        assert done.code == 75, str(done)
        (line,) = done.lines()
        assert line.startswith("fedmpi: stopped: SIGUSR1 came; ")
        assert line.endswith(f"continue with: fedmpi train --resume {folder}")
        with open_run(folder) as run:
            assert run.status == "stopped"
            assert run.rounds == 2
        command = line.split("continue with: fedmpi ")[1].split()
        mpi.succeed(3, [DRIVER, "--", *command])
        assert models(folder) == models(whole)
        assert load_config(folder / "config.yaml").federation.rounds == ROUNDS

    def test_a_round_longer_than_the_grace_time_is_given_up_on_all_ranks(self, tmp_path):
        done = self.stopped_in_round_2(tmp_path, "--set", "checkpoint.grace_s=0")
        assert done.code == 75, str(done)
        (line,) = done.lines()
        assert f"round 2 of {ROUNDS} was given up; 1 of {ROUNDS} rounds are done; " in line

    def test_a_rank_in_a_long_epoch_gives_up_within_a_batch(self, whole, tmp_path):
        """Its next batch would never end, and its launcher would say that it was killed."""
        done = self.stopped_in_round_2(tmp_path, "--set", "checkpoint.grace_s=0", hold="hold-in-a-batch")
        assert done.code == 75, str(done)
        assert not (tmp_path / "asleep-1").exists()
        (line,) = done.lines()
        assert f"round 2 of {ROUNDS} was given up; 1 of {ROUNDS} rounds are done; " in line
        mpi.succeed(None, [DRIVER, "--", "train", "--resume", tmp_path / "run"])
        assert models(tmp_path / "run") == models(whole)
