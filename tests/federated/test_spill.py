"""Bounded memory for many clients: what the kernel says is in memory, and runs that come out the same to the bit."""

import errno
import os
import re
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mpi4py import MPI

from fedmpi.cli import cli
from fedmpi.console import View
from fedmpi.errors import ConfigError, Stopped, StorageError
from fedmpi.federated import spill as module
from fedmpi.federated.spill import Shelf, Spill, piece_of
from fedmpi.sparse import Mask
from fedmpi.train import train
from tests import mpi
from tests.test_resume import DRIVER, PATIENCE, figures, models, science, wishing
from tests.tiny import write_config

SIZE = 1 << 16  # numbers of an array, 256 KiB
ROOM = 3 * 4 * SIZE  # for three of them


def vectors(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).standard_normal(SIZE).astype(np.float32) for i in range(count)]


def resident(folder: Path) -> int:
    """Return how many bytes of the files of a folder are in this process's memory, as the kernel counts."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


class TestRoom:
    def test_without_a_limit_everything_stays_where_it_is(self, tmp_path):
        room, array = Spill(0, tmp_path), vectors(1)[0]
        assert room.keep(array) is array
        assert piece_of(room.empty(SIZE)) is None

    def test_small_arrays_stay_too(self, tmp_path):
        array = np.arange(10.0)
        assert Spill(1, tmp_path).keep(array) is array

    def test_no_more_than_the_limit_is_in_memory_and_nothing_is_lost(self, tmp_path):
        room, originals = Spill(ROOM, tmp_path), vectors(12)
        kept = []
        for array in originals:
            kept.append(room.keep(array))
            assert resident(tmp_path) <= ROOM
        assert resident(tmp_path) > 0
        for mine, original in zip(kept, originals, strict=True):
            room.use(mine)
            np.testing.assert_array_equal(mine, original)
            assert resident(tmp_path) <= ROOM
        room.rest()
        assert resident(tmp_path) == 0

    def test_who_was_used_longest_ago_gives_way(self, tmp_path):
        room = Spill(ROOM, tmp_path)
        a, b, c, d = (room.keep(array) for array in vectors(4))
        assert [piece_of(x).away for x in (a, b, c, d)] == [True, False, False, False]
        room.use(b, a)
        assert [piece_of(x).away for x in (a, b, c, d)] == [False, False, True, False]

    def test_what_is_larger_than_the_limit_is_used_alone(self, tmp_path):
        room = Spill(1, tmp_path)
        kept = [room.keep(array) for array in vectors(2)]
        room.use(*kept)
        assert [piece_of(x).away for x in kept] == [True, False]

    def test_what_is_filled_later(self, tmp_path):
        room, original = Spill(1, tmp_path), vectors(1)[0]
        array = room.empty(SIZE)
        array[: SIZE // 2] = original[: SIZE // 2]
        room.empty(SIZE)  # the first one gives way, half full
        room.use(array)
        array[SIZE // 2 :] = original[SIZE // 2 :]
        assert room.keep(array) is array
        assert room.keep(array) is array
        room.rest()
        room.use(array)
        np.testing.assert_array_equal(array, original)

    def test_a_shelf_counts_what_is_looked_at(self, tmp_path):
        room, originals = Spill(ROOM, tmp_path), vectors(9)
        shelf = Shelf(room, {c: room.keep(array) for c, array in enumerate(originals)})
        for start in range(0, SIZE, SIZE // 4):
            for c in shelf:
                np.testing.assert_array_equal(shelf[c][start : start + 99], originals[c][start : start + 99])
                assert resident(tmp_path) <= ROOM

    def test_masks(self, tmp_path):
        mask = Mask.from_bool(np.random.default_rng(0).random(1 << 19) < 0.3)
        kept = Spill(1, tmp_path).keep_mask(mask)
        assert piece_of(kept.words) is not None
        assert kept == mask
        assert kept.count() == mask.count()

    def test_files_have_no_names_and_go_with_their_arrays(self, tmp_path):
        room = Spill(ROOM, tmp_path)
        kept = [room.keep(array) for array in vectors(5)]
        assert list(tmp_path.iterdir()) == []
        assert self.mappings(tmp_path) == 5
        del kept
        assert self.mappings(tmp_path) == 0

    def test_there_may_be_more_of_them_than_a_shell_allows_at_first(self, tmp_path):
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
        try:
            room = Spill(ROOM, tmp_path)
            kept = [room.keep(np.full(SIZE // 16, i, np.float32)) for i in range(300)]
            assert [array[99] for array in kept] == list(range(300))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    @staticmethod
    def mappings(folder: Path) -> int:
        return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


class TestDisks:
    def test_one_that_gives_back_something_else(self, tmp_path):
        room = Spill(1, tmp_path)
        kept = room.keep(vectors(1)[0])
        room.rest()
        piece_of(kept)[1000] ^= 1
        with pytest.raises(StorageError, match="a client's state was damaged on disk in"):
            room.use(kept)

    def test_one_that_is_full(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StorageError, match=r"state_dir: .*: No space left on device; 0\.3 MB are needed"):
            Spill(1, tmp_path).keep(vectors(1)[0])
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_none(self, tiny_config, tmp_path):
        config = tiny_config("federation.state_memory_mb=1", f"federation.state_dir={tmp_path}/none")
        with pytest.raises(ConfigError, match=r"federation\.state_dir: .*/none is no folder that can be written"):
            Spill.of(config)

    def test_is_told_in_one_line(self, tmp_path):
        argv = ["train", str(write_config(tmp_path)), "--out", str(tmp_path / "run")]
        sets = ["--set", "federation.state_memory_mb=1", "--set", f"federation.state_dir={tmp_path}/none"]
        job = mpi.run(None, [DRIVER, "--", *argv, *sets])
        assert job.code == 2, str(job)
        assert len(job.lines()) == 1
        assert "Traceback" not in job.err


SETS = ("data.clients=[ilids]", "data.split=5", "data.synthetic.identities=1", "federation.rounds=3")
RUNS = {
    "fedklpr": ("pruning.target=0.9", "crr.tau1=1.0", "crr.tau2=0.0"),
    "lossless": ("wire.values=lossless", "pruning.target=0.9", "crr.tau1=1.0", "federation.fraction=0.6"),
    "local": ("method=local",),
}
TIGHT = "federation.state_memory_mb=0.01"  # a little more than one model of the tiny network


@pytest.fixture
def all_spilled(monkeypatch):
    """Let the tiny network's masks and models count as large; returns what was ever put into a file."""
    made, original = [], Spill._map

    def counted(room, size):
        made.append(size)
        return original(room, size)

    monkeypatch.setattr(module, "SMALL", 1)
    monkeypatch.setattr(Spill, "_map", counted)
    return made


@pytest.mark.usefixtures("tiny_net")
class TestRuns:
    @pytest.fixture
    def go(self, tiny_config, tmp_path):
        def start(name: str, *sets: str, **more):
            config = tiny_config(*SETS, *sets)
            train(MPI.COMM_SELF, config, tmp_path / name, View(progress=False), **more)
            return tmp_path / name

        return start

    @pytest.mark.parametrize("kind", RUNS)
    def test_the_same_bits(self, go, tmp_path, all_spilled, kind):
        whole = go("whole", *RUNS[kind])
        assert all_spilled == []
        (tmp_path / "files").mkdir()
        tight = go("tight", *RUNS[kind], TIGHT, f"federation.state_dir={tmp_path}/files")
        assert sum(all_spilled) > 20 * 4 * 2072
        assert models(tight) == models(whole)
        assert science(tight) == science(whole)
        assert figures(tight) == figures(whole)
        assert list((tmp_path / "files").iterdir()) == []

    def test_stopped_with_files_and_resumed_without_and_the_other_way_round(self, go, tmp_path, all_spilled):
        whole = go("whole", *RUNS["lossless"])
        for name, first, second in (("a", TIGHT, "run.name=tiny"), ("b", "run.name=tiny", TIGHT)):
            with pytest.raises(Stopped):
                go(name, *RUNS["lossless"], first, stopper=wishing(0, 10))
            folder = go(name, *RUNS["lossless"], second, resume=str(tmp_path / name))
            assert models(folder) == models(whole)
            assert science(folder) == science(whole)
        assert all_spilled


@pytest.mark.mpi
@mpi.needs_mpirun
class TestRealJobs:
    def argv(self, folder: Path, name: str, *sets: str) -> list[object]:
        changes = [word for change in (*SETS, *RUNS["lossless"], *sets) for word in ("--set", change)]
        return ["train", write_config(folder), "--out", folder / name, *changes]

    def test_three_ranks_and_one(self, tmp_path):
        files = tmp_path / "files"
        files.mkdir()
        room = ("federation.state_memory_mb=0.001", f"federation.state_dir={files}")
        mpi.succeed(None, [DRIVER, "--", *self.argv(tmp_path, "one")])
        mpi.succeed(3, [DRIVER, "spill-all", "--", *self.argv(tmp_path, "three", *room)])
        assert models(tmp_path / "three") == models(tmp_path / "one")
        assert list(files.iterdir()) == []

    def test_killed_it_leaves_no_files(self, tmp_path):
        files = tmp_path / "files"
        files.mkdir()
        (tmp_path / "hold").touch()
        room = ("federation.state_memory_mb=0.001", f"federation.state_dir={files}")
        argv = [DRIVER, "spill-all", "hold", "--", *self.argv(tmp_path, "run", *room)]
        with mpi.started(None, argv, env={"DRIVER_OUT": str(tmp_path)}) as job:
            mpi.wait_for([tmp_path / "held-0"], PATIENCE)
            maps = Path(f"/proc/{job.process.pid}/maps").read_text()
            assert maps.count(f"{files}/") >= 5  # a model or mask of each client
            job.process.send_signal(signal.SIGKILL)
            job.wait(PATIENCE)
        assert list(files.iterdir()) == []


def test_the_keys_do_not_change_what_a_run_is(tiny_config):
    assert tiny_config(TIGHT, "federation.state_dir=/nowhere").digest() == tiny_config().digest()
    assert CliRunner().invoke(cli, ["config", "show", "--set", "federation.state_memory_mb=-1"]).exit_code != 0
