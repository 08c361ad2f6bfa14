import json
from pathlib import Path

import pytest

from fedmpi import run_folder
from fedmpi.errors import ConfigError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class TestCreate:
    def test_default_name_below_the_working_directory(self):
        folder = run_folder.create("quick", None)
        assert folder.path.parent == Path("runs")
        assert folder.path.name.startswith("quick-20")
        assert [p.name for p in folder.path.iterdir()] == ["clients"]

    def test_two_runs_in_one_second_do_not_meet(self):
        paths = {run_folder.create("quick", None).path for _ in range(4)}
        assert len(paths) == 4

    def test_the_given_one_exactly(self, tmp_path):
        folder = run_folder.create("quick", tmp_path / "a" / "b")
        assert folder.path == tmp_path / "a" / "b"
        assert folder.client_model("prid") == tmp_path / "a" / "b" / "clients" / "prid.safetensors"

    def test_an_empty_one_may_exist(self, tmp_path):
        (tmp_path / "new").mkdir()
        assert run_folder.create("quick", tmp_path / "new").path.is_dir()

    def test_nothing_is_overwritten(self, tmp_path):
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / ".hidden").write_text("data")
        with pytest.raises(ConfigError, match=r"old is not empty; a run never overwrites another: choose a new --out"):
            run_folder.create("quick", tmp_path / "old")
        assert [p.name for p in (tmp_path / "old").iterdir()] == [".hidden"]

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "file").write_text("data")
        with pytest.raises(ConfigError, match=r"cannot make the run folder .*file: File exists"):
            run_folder.create("quick", tmp_path / "file")
        with pytest.raises(ConfigError, match="cannot make the run folder"):
            run_folder.create("quick", tmp_path / "file" / "below")
        assert (tmp_path / "file").read_text() == "data"


class TestWriteWhole:
    def test_writes_and_replaces(self, tmp_path):
        target = tmp_path / "f"
        run_folder.write_whole(target, b"old")
        run_folder.write_whole(target, b"new")
        assert target.read_bytes() == b"new"
        assert [p.name for p in tmp_path.iterdir()] == ["f"]

    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        target = tmp_path / "f"
        run_folder.write_whole(target, b"old")

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(run_folder.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run_folder.write_whole(target, b"new and longer")
        assert target.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["f"]


class TestJson:
    def test_reads_back(self, tmp_path):
        content = {"a": 1, "b": [1.5, None], "c": {"name": "x"}}
        run_folder.write_json(tmp_path / "s.json", content)
        text = (tmp_path / "s.json").read_text()
        assert json.loads(text) == content
        assert text.endswith("}\n")

    def test_nan_is_no_json(self, tmp_path):
        with pytest.raises(ValueError, match="not JSON compliant"):
            run_folder.write_json(tmp_path / "s.json", {"a": float("nan")})
        assert not (tmp_path / "s.json").exists()
