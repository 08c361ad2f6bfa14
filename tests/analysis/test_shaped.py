"""`predict.py` against a real run over TCP between network namespaces whose ports are shaped by `tc`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpi.record import open_run
from tests.analysis.conftest import SCRIPTS

BIN = Path(sys.executable).parent
PAYLOAD = 1448 / 1514  # of what `tc` counts, per full frame of TCP
RATES = {"server": 160, "down": 200, "up": 100}  # Mbit/s

pytestmark = [pytest.mark.slow, pytest.mark.mpi]


def sh(*words, check=True):
    return subprocess.run(words, check=check, capture_output=True, text=True, timeout=60)


def why_not():
    """Why the network cannot be made here; empty if it can."""
    missing = [name for name in ("ip", "tc", "unshare", "mount") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        return f"needs root and {', '.join(missing) or 'nothing else'}"
    mpirun = BIN / "mpirun"
    if not mpirun.exists() or "HYDRA" not in sh(str(mpirun), "--version").stdout:
        return "needs MPICH's mpirun, whose launcher can enter namespaces"
    name = f"fedmpi-try-{os.getpid()}"
    made = sh("ip", "netns", "add", name, check=False)
    link = sh("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1", check=False)
    shaped = sh("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit",
                "burst", "9kb", "latency", "50ms", check=False)  # fmt: skip
    sh("ip", "netns", "del", name, check=False)
    bad = next((r.stderr.strip() for r in (made, link, shaped) if r.returncode), "")
    return f"no shaped links here: {bad}" if bad else ""


@pytest.fixture
def network(tmp_path):
    """Three namespaces on a bridge in a fourth; returns addresses and the launcher that starts a program in one."""
    if reason := why_not():
        pytest.skip(reason)
    prefix = f"fedmpi-{os.getpid()}-"
    names = [f"{prefix}{i}" for i in range(3)]
    launcher = tmp_path / "launch.sh"
    launcher.write_text(
        "#!/bin/bash\n"
        'while [ "${1#-}" != "$1" ]; do shift; done\n'
        "i=$(( ${1##*.} - 1 )); shift\n"
        f"exec ip netns exec {prefix}$i unshare --uts --ipc --mount bash -c "
        '"hostname node$i; mount -t tmpfs none /dev/shm; $*"\n'
    )
    launcher.chmod(0o755)
    try:
        _make(f"{prefix}hub", names)
        yield [f"10.9.0.{i + 1}" for i in range(3)], launcher, names[0]
    finally:
        for name in (*names, f"{prefix}hub"):
            sh("ip", "netns", "del", name, check=False)


def _make(hub, names):
    sh("ip", "netns", "add", hub)
    sh("ip", "-n", hub, "link", "add", "br0", "type", "bridge")
    sh("ip", "-n", hub, "link", "set", "br0", "up")
    for i, name in enumerate(names):
        sh("ip", "netns", "add", name)
        sh("ip", "-n", name, "link", "set", "lo", "up")
        sh("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"p{i}", "netns", hub)
        sh("ip", "-n", name, "addr", "add", f"10.9.0.{i + 1}/24", "dev", "eth0")
        sh("ip", "-n", name, "link", "set", "eth0", "up")
        sh("ip", "-n", hub, "link", "set", f"p{i}", "master", "br0")
        sh("ip", "-n", hub, "link", "set", f"p{i}", "up")
        out, into = ("server", "server") if i == 0 else ("up", "down")
        for space, port, way in ((name, "eth0", out), (hub, f"p{i}", into)):
            sh("ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", port, "root", "tbf", "rate",
               f"{RATES[way]}mbit", "burst", "128kb", "latency", "200ms")  # fmt: skip


def test_prediction_is_within_a_quarter_of_the_measurement(network, tmp_path):
    """The issue's bound: 25 %, for each collective; 2 clients, so that the server's port is the limit."""
    addresses, launcher, home = network
    env = os.environ | {"MPIR_CVAR_NOLOCAL": "1", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "eth0", "OMP_NUM_THREADS": "1"}
    settings = ("data.clients=[prid, ilids]", "federation.rounds=2", "local.epochs=1", "local.last_round_epochs=1",
                "crr.enabled=false", "evaluation.every=1")  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    command = ["ip", "netns", "exec", home, str(BIN / "mpirun"), "-launcher", "ssh", "-launcher-exec", str(launcher),
               "-hosts", ",".join(addresses), "-ppn", "1", "-n", "3", str(BIN / "fedmpi"), "train", *words,
               "--out", str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(SCRIPTS))
    import _links as links
    import predict

    rates = {name: 1e6 * rate * PAYLOAD for name, rate in RATES.items()}
    link = links.Link("shaped", rates["down"], rates["up"], 1e-4, rates["server"])
    with open_run(tmp_path / "run") as run:
        replayed, hosts = predict.replay(run), predict.hosts_of(run)
        for name, (moved, taken) in predict.transfers(run).items():
            way = "up" if name == "up" else "down"
            predicted = links.seconds(link, way, replayed.bytes[name], replayed.segments, hosts).sum()
            assert moved > 80e6
            assert 0.75 <= predicted / taken.sum() <= 1.25, f"{name}: {predicted:.2f} s, measured {taken.sum():.2f} s"
