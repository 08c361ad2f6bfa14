"""A private SLURM for tests: real daemons, fake nodes, cores and GPUs, in one folder; nothing under /etc.

Debian: ``apt-get install --no-install-recommends slurmctld slurmd slurm-client munge``.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.mpi import LAUNCHER_PREFIXES

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES, CPUS, GPUS = 3, 16, 9
SECONDS = 900
"""Longest wait for anything; a machine that others use too is slow."""
ATTEMPTS = 3
"""Starts of SLURM before giving up: a port that was free may be taken a moment later."""
SETTLED = 4
"""Seconds after which a node has forgotten the job's last start; before, it refuses the next one."""
OVER = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")
"""States that a job does not leave by itself."""
CONFIGURATION = """\
ClusterName=fedmpi
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
TmpFS={folder}/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=60
MessageTimeout=100
MinJobAge=3600
FirstJobId={first}
GresTypes=gpu
PartitionName=main Nodes=n[1-{nodes}] Default=YES State=UP PriorityTier=1
PartitionName=preemptible Nodes=n[1-{nodes}] State=UP PriorityTier=1
PartitionName=urgent Nodes=n[1-{nodes}] State=UP PriorityTier=10 PreemptMode=OFF
"""


def programs() -> dict[str, str | None]:
    """Return the paths of SLURM's programs; daemons are not always on an ordinary path."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return {name: shutil.which(name, path=path) for name in PROGRAMS}


def reason_to_skip() -> str:
    """Return why there can be no private SLURM here, or an empty string."""
    missing = [name for name, path in programs().items() if path is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)}): apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "a private SLURM needs root (it starts jobs, and makes device nodes)"


class Cluster:
    """The running cluster; commands of SLURM talk to it and to no other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith((*LAUNCHER_PREFIXES, "SLURM", "SBATCH"))}
        self.environment = {**kept, "SLURM_CONF": str(folder / "slurm.conf"), "TZ": "UTC"}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Write the configuration and start the daemons in the foreground, as children of this process."""
        self.folder.chmod(0o755)
        self._make_devices()
        self._start_munge()
        for _ in range(ATTEMPTS):
            self._configure()
            self._start_slurm()
            wait("all nodes to be idle", lambda: self._one_died() or self._all_idle(), self.logs)
            if not self._one_died():
                return
            story = self.logs()
            self._end(1)
        pytest.fail(f"SLURM did not start, {ATTEMPTS} times\n{story}")

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._daemon(
            programs()["munged"], "--foreground", "--force", f"--key-file={key}",
            f"--socket={self.folder / 'munge.sock'}", f"--pid-file={self.folder / 'munged.pid'}",
            f"--log-file={self.folder / 'munged.log'}", f"--seed-file={self.folder / 'munge.seed'}",
        )  # fmt: skip
        wait("munge", lambda: (self.folder / "munge.sock").exists() or self._one_died(), self.logs)

    def _start_slurm(self) -> None:
        found = programs()
        self._daemon(found["slurmctld"], "-D", "-c")
        for number in range(1, NODES + 1):
            name = f"n{number}"
            self._daemon(*as_host(name, self.folder / "hosts"), found["slurmd"], "-D", "-N", name)

    def _all_idle(self) -> bool:
        try:
            shown = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", timeout=10).stdout
        except subprocess.TimeoutExpired:  # nobody answers: it would ask for a minute
            return False
        return shown.split() == ["idle"] * NODES

    def _one_died(self) -> bool:
        return any(daemon.poll() is not None for daemon in self._daemons)

    def _make_devices(self) -> None:
        """Make GPUs: SLURM wants character devices, so clones of /dev/null."""
        devices = self.folder / "dev"
        devices.mkdir()
        for number in range(GPUS):
            os.mknod(devices / f"gpu{number}", 0o20666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={devices}/gpu[0-{GPUS - 1}]\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")

    def _configure(self) -> None:
        """Write slurm.conf, with ports that are free now."""
        ports, host = free_ports(NODES + 1), socket.gethostname().split(".")[0]
        # MPICH names what its ranks share in memory after job and step. Another cluster's leftovers have other numbers.
        first = random.randrange(1000, 60_000_000)
        (self.folder / "state").mkdir(exist_ok=True)
        names = " ".join(f"n{number}" for number in range(1, NODES + 1))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {host} {names}\n::1 localhost\n")
        text = CONFIGURATION.format(folder=self.folder, host=host, ports=ports, nodes=NODES, first=first)
        for number, port in enumerate(ports[1:], 1):
            for kind in ("spool", "tmp"):  # each node has its own: PMIx keeps its sockets there
                (self.folder / f"{kind}.n{number}").mkdir(exist_ok=True)
            text += (
                f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} Boards=1 "
                f"SocketsPerBoard=1 CoresPerSocket={CPUS} ThreadsPerCore=1 RealMemory=1000 Gres=gpu:{GPUS}\n"
            )
        (self.folder / "slurm.conf").write_text(text)

    def _daemon(self, *argv: str) -> None:
        """Start a daemon that ends when this process does, even if that is killed."""
        name = next(Path(word).name for word in argv if Path(word).name in PROGRAMS)
        log = (self.folder / f"{name}{len(self._daemons)}.out").open("wb")
        command = ["setpriv", "--pdeathsig", "TERM", *argv]
        self._daemons.append(
            subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        )

    def stop(self) -> None:
        """End all jobs, then the daemons, the last one first."""
        if len(self._daemons) > 1 and not self._one_died():
            self.run("scancel", "--state=running", "-s", "KILL", "--full", "-u", "root")
            self.run("scancel", "-u", "root")
            end = time.monotonic() + 20
            while self.run("squeue", "-h").stdout.strip() and time.monotonic() < end:
                time.sleep(0.2)
        self._end(0)

    def _end(self, first: int) -> None:
        """End the daemons from number ``first`` on."""
        while len(self._daemons) > first:
            daemon = self._daemons.pop()
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(
        self, *argv: object, cwd: Path | None = None, timeout: float = SECONDS, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of SLURM, or one that uses it."""
        return subprocess.run(
            [str(part) for part in argv], env={**self.environment, **more}, cwd=cwd or self.folder, text=True,
            capture_output=True, check=False, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def call(self, *argv: object, cwd: Path | None = None, **more: str) -> str:
        """Run a command that must succeed, and return what it prints."""
        done = self.run(*argv, cwd=cwd, **more)
        assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *argv: object, cwd: Path, **more: str) -> int:
        """Return the number of a new batch job."""
        return int(self.call("sbatch", "--parsable", *argv, cwd=cwd, **more).split(";")[0])

    def show(self, job: int | str) -> dict[str, str]:
        """Return what SLURM knows of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", "-o", job).splitlines()[0]))

    def start_now(self, job: int | str) -> None:
        """Spare a requeued job most of its two minutes of waiting."""
        self.wait_for_requeue(job)
        time.sleep(SETTLED)
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait_for_requeue(self, job: int | str) -> None:
        """Return once a job that was started before waits in the queue."""

        def back() -> bool:
            shown = self.show(job)
            if shown["JobState"] in OVER:
                pytest.fail(f"job {job} is over and will not be put back\n{shown}\n{self.logs()}")
            return shown["JobState"] == "PENDING" and shown["Restarts"] != "0"

        wait(f"job {job} to be put back", back, lambda: f"{self.show(job)}\n{self.logs()}")

    def wait(self, job: int | str, *states: str) -> dict[str, str]:
        """Return what SLURM knows of a job once it is in one of ``states``."""

        def settled() -> bool:
            return self.show(job)["JobState"] in states

        wait(f"job {job} to be {' or '.join(states)}", settled, lambda: f"{self.show(job)}\n{self.logs()}")
        return self.show(job)

    def clear(self) -> None:
        """Cancel what a failed test left, which would keep the nodes from the next one."""
        if self.run("squeue", "-h").stdout.strip():
            self.run("scancel", "-u", "root")

    def logs(self) -> str:
        """Return the ends of all daemons' outputs."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.out")))


def as_host(name: str, hosts: Path) -> list[str]:
    """Return what starts a program on a node that has its own host name, as real ones do; ``hosts`` knows all names.

    PMIx finds the ranks of a node by it, and Open MPI those that may share memory; MPICH's mpirun looks its address up.
    Without the right to a name of its own (in some containers) the node has the machine's.
    """
    own = 'mount --bind "$1" /etc/hosts && hostname "$0" && shift && exec "$@"'  # seen by the node alone
    named = ["unshare", "--uts", "--mount", "sh", "-c", own, name, str(hosts)]
    tried = subprocess.run([*named, "true"], capture_output=True, check=False)
    return named if tried.returncode == 0 else []


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below those that the system gives to outgoing connections."""
    found: list[int] = []
    for port in random.sample(range(10_000, 30_000), 200):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def wait(what: str, done: Callable[[], bool], story: Callable[[], str] = str) -> None:
    """Return once ``done()`` holds; fail the test after `SECONDS`."""
    end = time.monotonic() + SECONDS
    while not done():
        if time.monotonic() > end:
            pytest.fail(f"waited {SECONDS} s for {what}\n{story()}")
        time.sleep(0.1)


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Bring a cluster up in ``folder``; whatever happens, it is stopped."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def shell(path: Path, lines: Sequence[str]) -> Path:
    """Write an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/usr/bin/env bash", *lines]) + "\n")
    path.chmod(0o755)
    return path
