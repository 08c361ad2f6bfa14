"""Real MPI jobs over TCP between network namespaces: ports shaped by `tc`, bytes counted by the kernel. Needs root."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
PAYLOAD = 1448 / 1514
"""Of what `tc` counts, per full frame of TCP."""
HEADERS = 66
"""Bytes of Ethernet, IP and TCP (with time stamps) in front of a packet's payload, as the device counts them."""


def sh(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a command of the system."""
    return subprocess.run(words, check=check, capture_output=True, text=True, timeout=60)


def why_not() -> str:
    """Return why such a network cannot be made here; empty if it can."""
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


class Network:
    """Hosts (rank 0 on the first) on a bridge, each a namespace with a port of its own."""

    def __init__(self, prefix: str, hosts: int, rates: Mapping[str, int], launcher: Path) -> None:
        self.hub, self.names = f"{prefix}hub", [f"{prefix}{i}" for i in range(hosts)]
        self._rates, self._launcher = rates, launcher
        launcher.write_text(
            "#!/bin/bash\n"
            'while [ "${1#-}" != "$1" ]; do shift; done\n'
            "i=$(( ${1##*.} - 1 )); shift\n"
            f"exec ip netns exec {prefix}$i unshare --uts --ipc --mount bash -c "
            '"hostname node$i; mount -t tmpfs none /dev/shm; $*"\n'
        )
        launcher.chmod(0o755)

    def make(self) -> None:
        """Join the hosts by ports of the given rates, in Mbit/s of frames."""
        sh("ip", "netns", "add", self.hub)
        sh("ip", "-n", self.hub, "link", "add", "br0", "type", "bridge")
        sh("ip", "-n", self.hub, "link", "set", "br0", "up")
        for i, name in enumerate(self.names):
            self._join(i, name)

    def _join(self, i: int, name: str) -> None:
        sh("ip", "netns", "add", name)
        sh("ip", "-n", name, "link", "set", "lo", "up")
        sh("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"p{i}", "netns", self.hub)
        sh("ip", "-n", name, "addr", "add", f"10.9.0.{i + 1}/24", "dev", "eth0")
        sh("ip", "-n", name, "link", "set", "eth0", "up")
        sh("ip", "-n", self.hub, "link", "set", f"p{i}", "master", "br0")
        sh("ip", "-n", self.hub, "link", "set", f"p{i}", "up")
        out, into = ("server", "server") if i == 0 else ("up", "down")
        for space, port, way in ((name, "eth0", out), (self.hub, f"p{i}", into)):
            sh("ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", port, "root", "tbf", "rate",
               f"{self._rates[way]}mbit", "burst", "128kb", "latency", "200ms")  # fmt: skip

    def remove(self) -> None:
        """Leave nothing behind."""
        for name in (*self.names, self.hub):
            sh("ip", "netns", "del", name, check=False)

    def run(self, argv: Sequence[str], timeout: float = 280.0) -> str:
        """Run ``fedmpi argv`` with a rank on every host, return its output; raises AssertionError if it fails."""
        env = os.environ | {
            "MPIR_CVAR_NOLOCAL": "1",  # no shared memory
            "FI_PROVIDER": "tcp",
            "FI_TCP_IFACE": "eth0",
            "OMP_NUM_THREADS": "1",
        }
        hosts = ",".join(f"10.9.0.{i + 1}" for i in range(len(self.names)))
        command = ["ip", "netns", "exec", self.names[0], str(BIN / "mpirun"), "-launcher", "ssh", "-launcher-exec",
                   str(self._launcher), "-hosts", hosts, "-ppn", "1", "-n", str(len(self.names)), str(BIN / "fedmpi"),
                   *argv]  # fmt: skip
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def received(self, host: int) -> int:
        """Return the bytes that reached a host in TCP's payload, by the counters of its device."""
        base = "/sys/class/net/eth0/statistics/rx_"
        shown = sh("ip", "netns", "exec", self.names[host], "cat", f"{base}bytes", f"{base}packets").stdout.split()
        return int(shown[0]) - HEADERS * int(shown[1])


@contextmanager
def shaped(hosts: int, rates: Mapping[str, int], folder: Path) -> Iterator[Network]:
    """Make a network; ``rates`` in Mbit/s: of the ``server``'s port, ``up`` from the others, ``down`` to them."""
    made = Network(f"fedmpi-{os.getpid()}-", hosts, rates, folder / "launch.sh")
    try:
        made.make()
        yield made
    finally:
        made.remove()
