import shutil
import subprocess
from importlib.metadata import version

import pytest

import fedmpi
from fedmpi.record import RunWriter, collect, open_run, provenance

NEEDS_GIT = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def test_what_a_process_tells_of_itself(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-3]")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", "/home/somebody/secret")
    items = collect(["fedmpi", "train", "my run.yaml"])
    assert items["argv"] == "fedmpi train 'my run.yaml'"
    assert items["fedmpi_version"] == fedmpi.__version__
    assert f"numpy {version('numpy')}" in items["package_versions"].splitlines()
    assert (items["slurm_job_id"], items["slurm_job_nodelist"]) == ("4711", "node[1-3]")
    assert all(isinstance(value, str) for value in items.values())
    assert not any("/home/" in value for value in items.values())


def test_it_fits_into_a_run_file(tmp_path):
    items = collect() | {"hosts": ["a", "b"], "config": "name: ü\n"}
    with RunWriter.create(tmp_path / "run.h5", ["a"], [], items):
        pass
    with open_run(tmp_path) as run:
        assert run.provenance == items


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@NEEDS_GIT
def test_commit_and_dirty_flag_of_a_source_tree(tmp_path):
    package = tmp_path / "fedmpi"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    assert provenance._commit(package) == {}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert provenance._commit(package) == {"git_commit": git(tmp_path, "rev-parse", "HEAD"), "git_dirty": "no"}
    (package / "__init__.py").write_text("changed = True\n")
    assert provenance._commit(package)["git_dirty"] == "yes"


@NEEDS_GIT
def test_a_repository_around_an_installed_package_is_not_taken_for_its_own(tmp_path):
    package = tmp_path / "venv" / "fedmpi"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "mine.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "mine.py")
    git(tmp_path, "commit", "-qm", "somebody else's")
    assert provenance._commit(package) == {}


def test_no_git_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git_commit" not in collect()
