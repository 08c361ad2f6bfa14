"""The checkpoint's file: whole or absent, verified to the last bit, the right ones kept."""

import hashlib
import os
import resource

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmpi.record import RecordError, checkpoint
from fedmpi.record.checkpoint import CheckpointError

ARRAYS = {
    "theta": np.arange(1000, dtype=np.float32) / 7,
    "client0/mask": np.arange(125, dtype=np.uint8),
    "client0/crr_best": np.array([np.nan]),
    "client1/labels": np.array([-1, 0, 3], np.int64),
    "client1/bad_train": np.array([], np.int64),
}


def write(folder, rounds, keep=2, **changes):
    return checkpoint.write(folder, rounds, {**ARRAYS, **changes}, {"config": "a: 1"}, keep=keep)


class TestContent:
    def test_comes_back(self, tmp_path):
        read = checkpoint.read(write(tmp_path / "new", 7))
        assert read.rounds == 7
        assert read.facts["config"] == "a: 1"
        assert read.arrays.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert read.arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(read.arrays[name], array)

    def test_any_safetensors_reader_reads_it(self, tmp_path):
        np.testing.assert_array_equal(load_file(write(tmp_path, 1))["theta"], ARRAYS["theta"])

    def test_the_name_carries_the_checksum_of_the_content(self, tmp_path):
        path = write(tmp_path, 3)
        assert path.name == f"round-000003.{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}.checkpoint"

    def test_arrays_larger_than_a_block_and_not_contiguous(self, tmp_path):
        large = np.random.default_rng(0).standard_normal((600, 1000)).astype(np.float32).T
        np.testing.assert_array_equal(checkpoint.read(write(tmp_path, 1, theta=large)).arrays["theta"], large)


class TestDamage:
    @pytest.mark.parametrize("place", [0, 9, 200, -1])
    def test_a_flipped_bit_is_refused_by_name(self, tmp_path, place):
        path = write(tmp_path, 4)
        data = bytearray(path.read_bytes())
        data[place] ^= 4
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{path.name}: damaged"):
            checkpoint.read(path)

    @pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"\0"])
    def test_a_wrong_length_is_refused_by_name(self, tmp_path, change):
        path = write(tmp_path, 4)
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(CheckpointError, match=rf"{path.name}: damaged"):
            checkpoint.read(path)

    def test_another_number_of_rounds_in_the_name_is_refused(self, tmp_path):
        path = write(tmp_path, 4)
        other = path.rename(path.with_name(path.name.replace("000004", "000005")))
        with pytest.raises(CheckpointError, match="rounds '4': not a checkpoint"):
            checkpoint.read(other)

    def test_a_newer_format_is_refused(self, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "FORMAT", "2")
            path = write(tmp_path, 4)
        with pytest.raises(CheckpointError, match="format '2'"):
            checkpoint.read(path)


class TestFolder:
    def test_the_newest_are_kept(self, tmp_path):
        for rounds in range(1, 6):
            write(tmp_path, rounds, keep=3)
        assert [path.name[:12] for path in checkpoint.found(tmp_path)] == [
            "round-000005",
            "round-000004",
            "round-000003",
        ]

    def test_one_that_replaces_a_future_removes_it(self, tmp_path):
        for rounds in (3, 4, 5):
            write(tmp_path, rounds, keep=3)
        newest = write(tmp_path, 4, theta=np.zeros(3, np.float32))
        names = [path.name for path in checkpoint.found(tmp_path)]
        assert names[0] == newest.name
        assert [name[:12] for name in names] == ["round-000004", "round-000003"]

    def test_what_a_killed_process_left_is_swept(self, tmp_path):
        (tmp_path / ".round-abc").write_bytes(b"half")
        (tmp_path / "notes.txt").write_text("mine")
        write(tmp_path, 1)
        assert sorted(path.name[:12] for path in tmp_path.iterdir()) == ["notes.txt", "round-000001"]
        checkpoint.remove_all(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_an_empty_folder_goes_with_the_last_one(self, tmp_path):
        write(tmp_path / "some", 1)
        checkpoint.remove_all(tmp_path / "some")
        assert list(tmp_path.iterdir()) == []
        checkpoint.remove_all(tmp_path / "some")


class TestNoRoom:
    def test_is_one_line_and_leaves_the_older_ones(self, tmp_path):
        """A child with a limit on file sizes: the write fails in the middle, as on a full disk."""
        older = write(tmp_path, 1)
        if (child := os.fork()) == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
            try:
                write(tmp_path, 2)
            except RecordError as error:
                os._exit(10 if "file size limit reached" in str(error) and "\n" not in str(error) else 11)
            os._exit(12)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
        assert list(tmp_path.iterdir()) == [older]
        assert checkpoint.read(older).rounds == 1
