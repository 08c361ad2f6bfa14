"""``fedmpi data synthesize``: what it prints is what lies on the disk, and that is what memory would hold."""

import shlex
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from fedmpi.cli import cli
from fedmpi.config import load_config
from fedmpi.errors import ConfigError, DataError
from fedmpi.reid.datasets import client_names, load_client

FEW = ["--set", "data.synthetic.identities=0.15", "--set", "data.clients=[prid, ilids, Duke]"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def synthesize(*arguments):
    result = CliRunner().invoke(cli, ["data", "synthesize", *map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def table(output):
    """The cells of each client's line."""
    rows = [line.split() for line in output.splitlines() if line.startswith("  ")]
    return {row[0]: row[1:] for row in rows if row[0] not in ("client", "identities/images")}


def found(client):
    """Identities, images and cameras of a client, counted in its folders and file names."""
    cells = {}
    cameras = set()
    for subset in ("train_all", "query", "gallery"):
        folders = list((client / "pytorch" / subset).iterdir())
        files = [file for folder in folders for file in folder.iterdir()]
        cells[subset] = f"{len(folders)}/{len(files)}"
        cameras |= {f.name.split("_c")[1][0] if client.name == "Duke" else f.name.split("_")[1] for f in files}
    return [str(len(cameras)), *cells.values(), str(sum(int(cell.split("/")[1]) for cell in cells.values()))]


def test_the_table_counts_what_was_written(here):
    output = synthesize("people", *FEW)
    rows = table(output)
    assert list(rows) == ["prid", "ilids", "Duke"]
    assert rows == {client.name: found(client) for client in (here / "people").iterdir()}
    total = sum(1 for _ in (here / "people").rglob("*.png"))
    assert f"{total} images of 3 clients" in output


def test_the_printed_command_trains_on_the_same_images_as_memory(here):
    output = synthesize("my people", "quickstart", *FEW, "--set", "data.height=32")
    words = shlex.split(output.splitlines()[-1].partition(": ")[2])
    assert words[:5] == ["mpirun", "-n", "4", "fedmpi", "train"]
    assert words[5] == "quickstart"
    overrides = words[7::2]
    assert words[6::2] == ["--set"] * len(overrides)
    filed, drawn = load_config(words[5], overrides), load_config(words[5], overrides[:-1])
    assert client_names(filed.data, 0) == client_names(drawn.data, 0) == ("prid", "ilids", "Duke")
    for index in range(3):
        a, b = load_client(filed.data, 0, index), load_client(drawn.data, 0, index)
        for one, other in ((a.train, b.train), (a.query, b.query), (a.gallery, b.gallery)):
            assert np.array_equal(one.pids, other.pids)
            assert np.array_equal(one.camids, other.camids)
            assert all(np.array_equal(one.pixels.read(i), other.pixels.read(i)) for i in range(len(other)))


def test_the_seed_of_the_configuration_decides(here):
    one = ["--set", "data.synthetic.identities=0.15", "--set", "data.clients=[ilids]"]
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthesize(folder, *one, "--set", f"run.seed={seed}")
    first, again, other = (
        b"".join(file.read_bytes() for file in sorted((here / name).rglob("*.png"))) for name in "abc"
    )
    assert first == again != other


def test_nothing_is_overwritten_and_nothing_is_printed_before_that_is_known(here, capsys):
    (here / "people").mkdir()
    (here / "people" / "mine.txt").write_text("keep")
    result = CliRunner().invoke(cli, ["data", "synthesize", "people"])
    assert isinstance(result.exception, DataError)
    assert "people: exists and is not an empty folder" in str(result.exception)
    assert result.output == ""
    assert [file.name for file in (here / "people").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--set", "data.synthetic.identitys=2"], ConfigError, "did you mean 'identities'"),
        (["--set", "data.clients=[nobody]"], DataError, "no embedded client nobody"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(here, arguments, error, message):
    with pytest.raises(error, match=message):
        synthesize("people", *arguments)
    assert not (here / "people").exists()


def test_a_mistake_leaves_with_code_2_and_one_line(here):
    (here / "people").write_text("a file")
    command = [sys.executable, "-m", "fedmpi", "data", "synthesize", "people"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("fedmpi: error: people: exists")


def test_help_imports_neither_torch_nor_mpi(here):
    code = (
        "import sys; sys.argv = ['fedmpi', 'data', 'synthesize', '--help']\n"
        "from fedmpi.cli import cli\n"
        "cli(standalone_mode=False)\n"
        "assert not {'torch', 'mpi4py', 'numpy'} & set(sys.modules), 'slow import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "processed layout" in done.stdout
