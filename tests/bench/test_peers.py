"""Peers are not installed for the tests; stand-ins print what their scripts would."""

import stat
import sys
import time
from pathlib import Path

import pytest

from fedmpi.bench import peers
from fedmpi.bench.records import Record
from fedmpi.errors import ConfigError, LaunchError


def test_none_installed(tmp_path):
    said = []
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(ConfigError, match=r"no peer is installed for .*--python"):
        list(peers.measure(python, 100, 2, 1, 5.0, said.append))
    assert [line.split(":")[0] for line in said] == list(peers.PEERS)
    assert "pip install flwr[simulation]" in said[0]


def test_no_python(tmp_path):
    with pytest.raises(ConfigError, match="cannot be started"):
        list(peers.measure(tmp_path / "nothing", 100, 2, 1, 5.0, print))


def test_records(tmp_path, monkeypatch):
    """The first round is left out, and the ratio is over fedmpi's dense exchange by messages."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *version*flwr*) echo 1.2.3; exit;; *version*) exit 1;; esac\n'
                      'echo "[half a line of a log seconds: [9.0, 2.0, 4.0]"; echo "[1, 1]"\n'
                      f'exec {sys.executable} -c ""\n')  # fmt: skip
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    times = {("shared memory", 1.0): 0.25, ("messages", 0.3): 0.15, ("messages", 1.0): 0.5}
    own = [Record("exchange", "exchange", d, plan, "raw", s, 7, 1.0) for (plan, d), s in times.items()]
    monkeypatch.setattr(peers, "_own", lambda *_: own)
    said = []
    flower, *ours = peers.measure(python, 100, 2, 3, 30.0, said.append)
    assert (flower.seconds, flower.bytes, flower.ratio_to_dense) == (3.0, 1600, 6.0)
    assert flower.name == "Flower simulation 1.2.3"
    assert [(r.name, r.ratio_to_dense) for r in ours] == [
        ("fedmpi, shared memory", 0.5),
        ("fedmpi, messages", 0.3),
        ("fedmpi, messages", 1.0),
    ]
    assert len(said) == 1
    assert said[0].startswith("APPFL")
    assert len(peers.rows([flower, *ours])) == 5


def test_too_slow_is_ended_with_its_children(tmp_path):
    pid = tmp_path / "pid"
    with pytest.raises(peers.NoResultError, match="it did not end within 1 s, its last words: beginning"):
        peers._run(["/bin/sh", "-c", f"sleep 100 & echo $! > {pid}; echo beginning; wait"], 1.0)
    child, deadline = Path(f"/proc/{pid.read_text().strip()}/stat"), time.monotonic() + 30
    while child.exists() and child.read_text().split()[2] != "Z":  # on a busy machine, dying takes its time
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_fails_says_why(tmp_path, monkeypatch):
    with pytest.raises(peers.NoResultError, match=r"nothing cannot be started \(No such file or directory\)"):
        peers._run([str(tmp_path / "nothing")], 1.0)
    with pytest.raises(peers.NoResultError, match=r"it failed with code 3$"):
        peers._run(["/bin/sh", "-c", "exit 3"], 5.0)
    monkeypatch.setattr(peers, "_mpirun", lambda *_: ["/bin/sh", "-c", "echo no proxy >&2; exit 4", "--"])
    with pytest.raises(LaunchError, match=r"failed: it failed with code 4, its last words: no proxy; try mpirun -n 3"):
        peers._own(100, 2, 5.0)
    with pytest.raises(peers.NoResultError, match="it printed no times"):
        peers._times(Path("/bin/sh"), ["-c", "echo nonsense"], 2, 5.0, needs_mpi=False)
