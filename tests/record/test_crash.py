"""A run file is whole and keeps every committed round, whenever the writer is killed and whatever fails."""

import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from fedmpi.record import RecordError, RunWriter, layout, open_run
from fedmpi.record.working import WorkingFile
from tests.record import sample
from tests.record.test_writer import assert_rounds

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def states(create):
    """The bytes of a file before and after one round that needs no new chunks, and where its chunks lie."""
    writer = create(rounds=8)
    sample.write(writer, 3)
    before = np.frombuffer(writer.path.read_bytes(), np.uint8)
    sample.write(writer, 4, start=3)
    after = np.frombuffer(writer.path.read_bytes(), np.uint8)
    data = np.zeros(len(after), bool)
    with h5py.File(writer.path, locking=False) as file:
        marker = int(file.attrs[layout.COMMITTED])
        growing = [*layout.per_round(file).values(), file[layout.TABLE]]
        for dataset in growing:
            info = dataset.id.get_chunk_info(0)
            data[info.byte_offset : info.byte_offset + info.size] = True
    assert marker == 4
    return writer.path, before, after, data, len(growing)


def test_a_round_alters_only_its_cells_one_extent_each_and_the_marker(states):
    _, before, after, data, growing = states
    assert len(before) == len(after)
    structure = np.flatnonzero((before != after) & ~data)
    assert len(structure) == growing + 1
    assert len(set(structure // 8)) == growing + 1


def test_any_mixture_of_old_and_new_bytes_is_whole(states, tmp_path):
    """What a kill, a power failure before the marker, or a reader in the middle can find, in any order of writes."""
    _, before, after, _, _ = states
    marker = marker_position(before, after, tmp_path)
    changed = np.setdiff1d(np.flatnonzero(before != after), [marker])
    rng = np.random.default_rng(0)
    for share in [0.0, 1.0, *rng.random(15)]:
        mixed = before.copy()
        taken = changed[rng.random(len(changed)) < share]
        mixed[taken] = after[taken]
        (tmp_path / "mixed.h5").write_bytes(mixed.tobytes())
        with open_run(tmp_path / "mixed.h5") as run:
            assert_rounds(run, 3)


def marker_position(before, after, folder):
    """Find the one byte that turns three committed rounds into four."""
    found = []
    for place in np.flatnonzero(before != after):
        if (before[place], after[place]) == (3, 4):
            trial = before.copy()
            trial[place] = 4
            (folder / "trial.h5").write_bytes(trial.tobytes())
            with h5py.File(folder / "trial.h5") as file:
                if file.attrs[layout.COMMITTED] == 4:
                    found.append(place)
    assert len(found) == 1
    return found[0]


def test_uncommitted_rows_are_not_seen_and_go_on_resume(create, monkeypatch):
    writer = create(rounds=8)
    sample.write(writer, 2)
    syncs = iter([None])
    original = WorkingFile.sync

    def fail_before_the_marker(self):
        original(self)
        next(syncs, None)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(WorkingFile, "sync", fail_before_the_marker)
    with pytest.raises(RecordError, match=r"run.h5: cannot write .*Input/output error.*; 2 committed rounds stay"):
        writer.commit(*sample.parts(2))
    monkeypatch.undo()
    with open_run(writer.path) as run:
        assert run._file["clients/density"].shape[0] == 3
        assert_rounds(run, 2)
    with pytest.raises(RecordError, match="closed or has failed"):
        writer.commit(*sample.parts(2))
    writer.close("failed", "disk")
    with open_run(writer.path) as run:
        assert run._file["clients/density"].shape[0] == 2
        assert_rounds(run, 2)


def fill_until(path, limit_above, answers):
    """Write rounds in chunks of two until the file may grow no more."""
    writer = RunWriter.create(path, sample.CLIENTS, sample.LAYERS, {}, rounds=2)
    sample.write(writer, 2)
    limit = path.stat().st_size + limit_above
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        sample.write(writer, 1000, start=2)
    except RecordError as error:
        answers.put((str(error), writer.committed))
    writer.close("failed", "no room")


@pytest.mark.parametrize("limit_above", [0, 600_000])
def test_a_full_disk_is_one_line_and_the_last_whole_state_stays(tmp_path, limit_above):
    """A file size limit stands in for a full disk: both are errors of the same calls."""
    path = tmp_path / "run.h5"
    answers = SPAWN.Queue()
    process = SPAWN.Process(target=fill_until, args=(path, limit_above, answers))
    process.start()
    line, committed = answers.get(timeout=120)
    process.join()
    assert process.exitcode == 0
    assert line == (
        f"{path}: file size limit reached (ulimit -f), raise it and resume; {committed} committed rounds stay readable"
    )
    assert committed % 2 == 0
    assert (committed > 2) == (limit_above > 0)
    with open_run(path) as run:
        assert (run.status, run.error) == ("failed", "no room")
        assert_rounds(run, committed)
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def write_forever(path, noted, rounds):
    """Commit rounds and note each one afterwards; the parent ends this."""
    writer = RunWriter.create(path, sample.CLIENTS, sample.LAYERS, {}, rounds=rounds)
    for number in range(1_000_000):
        writer.commit(*sample.parts(number))
        noted.value = number + 1


class Child:
    """A process that writes rounds until it is killed."""

    def __init__(self, path, rounds):
        self.noted = SPAWN.RawValue("q", 0)  # no lock, which a killed child would hold for ever
        self.process = SPAWN.Process(target=write_forever, args=(path, self.noted, rounds), daemon=True)
        self.process.start()
        deadline = time.monotonic() + 60
        while self.noted.value == 0:
            assert time.monotonic() < deadline
            assert self.process.is_alive()
            time.sleep(0.002)

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        return self.noted.value


def kill_and_resume(folder, rng, rounds):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "run.h5"
    child = Child(path, rounds)
    time.sleep(rng.uniform(0, 0.4))
    noted = child.kill()
    with open_run(path) as run:
        assert noted <= run.rounds <= noted + 1
        assert run.status == "running"
        assert_rounds(run, run.rounds)
    writer = RunWriter.reopen(path, noted)
    sample.write(writer, noted + 1, start=noted)
    writer.close("finished")
    with open_run(path) as run:
        assert_rounds(run, noted + 1)
    assert [p.name for p in folder.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("rounds", [3, None])
def test_killed_at_a_random_moment(tmp_path, rounds):
    kill_and_resume(tmp_path / "run", np.random.default_rng(rounds), rounds)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path):
    rng = np.random.default_rng(1)
    for _ in range(20):
        kill_and_resume(tmp_path / "run", rng, rng.choice([1, 4, 256]))


def test_ordinary_readers_open_the_file_while_it_is_written(tmp_path):
    """Plain h5py with its default locking, xarray, and PyTables through pandas, none of them knowing of fedmpi."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("tables")
    path = tmp_path / "run.h5"
    child = Child(path, 5)
    seen = []
    until = time.monotonic() + 3
    while time.monotonic() < until or len(seen) < 3:
        noted = child.noted.value
        with h5py.File(path) as file:
            committed = int(file.attrs[layout.COMMITTED])
            assert committed >= noted
            assert (file["rounds/seconds"][:committed] == np.arange(committed) + 10).all()
        with xarray.open_dataset(path, group="clients") as clients:
            density = clients.density.sel(client="duke")[:noted]
            assert density.values.tolist() == [sample.clients(r)["density"][1] for r in range(noted)]
        assert len(pd.read_hdf(path, "messages/table")) >= 6 * noted
        with open_run(path) as run:
            assert run["clients/density"].shape == (run.rounds, 3)
        seen.append(committed)
    child.kill()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def written_bytes():
    """Bytes that this process has passed to write calls, by the kernel's count."""
    with Path("/proc/self/io").open(encoding="ascii") as lines:
        return int(dict(line.split(": ") for line in lines)["wchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs the Linux kernel's count of written bytes")
def test_a_round_costs_the_same_however_long_the_file(create):
    """A round writes its own rows and one object header per dataset, not the file."""
    writer = create(rounds=256)
    costs = {}
    for r in range(202):
        table = sample.messages(r)[:6]
        before = written_bytes()
        writer.commit(r, sample.scalars(r), sample.clients(r), sample.layers(r), table)
        costs[r] = written_bytes() - before
    assert costs[200] == costs[4]
    assert costs[200] < writer.path.stat().st_size / 5
