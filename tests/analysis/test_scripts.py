"""What all scripts have in common: they start, know the reader alone, and write the same bytes every time."""

import ast
import os
import subprocess
import sys

import accuracy
import compare
import h5py
import numpy as np
import predict
import pytest
import report
import traffic

from fedmpi.record import RunWriter
from tests.analysis import sample
from tests.analysis.conftest import SCRIPTS

NAMES = ("traffic", "accuracy", "compare", "predict", "report")
COMMANDS = {"traffic": traffic, "accuracy": accuracy, "compare": compare, "predict": predict, "report": report}


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_they_know_the_reader_and_nothing_else_of_the_package(path):
    tree = ast.walk(ast.parse(path.read_text()))
    names = {node.module for node in tree if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if name and name.startswith("fedmpi")} <= {"fedmpi.record"}


@pytest.mark.parametrize("name", NAMES)
def test_started_as_a_script_without_a_display(name, run_file, tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in {"DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"}}
    out = tmp_path / "out" if name != "report" else tmp_path / "page.html"
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), str(run_file), "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert out.exists()


@pytest.mark.parametrize("name", NAMES)
def test_help(name, invoke):
    text = invoke(COMMANDS[name].main, "--help")
    assert "RUN" in text
    assert "--out" in text


@pytest.mark.parametrize("name", [n for n in NAMES if n != "report"])
def test_every_format_twice_the_same(name, run_file, tmp_path, invoke):
    formats = [word for kind in ("png", "svg", "pdf", "csv") for word in ("--format", kind)]
    contents = []
    for folder in ("a", "b"):
        invoke(COMMANDS[name].main, run_file, "--out", tmp_path / folder, *formats)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    first, second = contents
    assert {"png", "svg", "pdf", "csv"} <= {file.rsplit(".", 1)[1] for file in first}
    assert first == second
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for file, content in first.items():
        assert content.startswith(starts.get(file.rsplit(".", 1)[1], b""))
        assert len(content) > 30


@pytest.mark.parametrize("name", NAMES)
def test_no_run_is_one_line(name, tmp_path, invoke):
    text = invoke(COMMANDS[name].main, tmp_path / "nothing.h5", code=2)
    assert "no such run file" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_rounds_is_one_line(name, tmp_path, invoke):
    text = invoke(COMMANDS[name].main, sample.write(tmp_path / "run.h5", rounds=0), code=2)
    assert "no round is committed yet" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_variable_is_one_line(name, tmp_path, invoke):
    path = sample.write(tmp_path / "run.h5")
    with h5py.File(path, "r") as file:
        places = [file[n].id.get_chunk_info(0).byte_offset for n in ("clients/bytes_up_values", "messages/table")]
    raw = bytearray(path.read_bytes())
    for place in places:
        raw[place] ^= 0xFF
    path.write_bytes(raw)
    text = invoke(COMMANDS[name].main, path, code=1)
    assert " is damaged (" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_goes_on(name, tmp_path, invoke):
    path, writer = sample.write(tmp_path / "run.h5", rounds=1, status="running")
    with writer:
        invoke(COMMANDS[name].main, path)
        sample.commit(writer, 1)
        invoke(COMMANDS[name].main, path)


@pytest.mark.parametrize("name", NAMES)
def test_runs_without_scores_layers_or_decisions(name, tmp_path, invoke):
    nothing = {n: [float("nan")] * 2 for n in ("map", "rank1", "rank5", "rank10", "global_map", "global_rank1")}
    changes = nothing | {"crr_decision": [0, 0], "klaw": [float("nan")] * 2, "clusters": [-1, -1]}
    path = sample.write(tmp_path / "run.h5", changes=changes, layered=False)
    invoke(COMMANDS[name].main, path)


@pytest.mark.parametrize("name", NAMES)
def test_many_clients(name, tmp_path, invoke):
    """More clients than lines that can be told apart, and than a table has room for."""
    names = [f"client {k:02d}" for k in range(50)]
    with RunWriter.create(tmp_path / "run.h5", names, (), sample.provenance()) as writer:
        for t in range(2):
            ways = [(k, way) for way in ("down", "up") for k in range(50)]
            table = np.concatenate([sample.message(t, k, way, values=4000) for k, way in ways])
            spread = np.linspace(0.1, 0.9, 50)
            rows = {
                "weight": np.full(50, 0.02),
                "density": spread,
                "map": spread,
                "rank1": spread,
                "loss_total": spread,
            }
            rows |= {"crr_decision": np.arange(50) % 5, "klaw": spread}
            writer.commit(t, sample.scalars(t), rows, {}, table)
    invoke(COMMANDS[name].main, tmp_path / "run.h5")
