"""Tiny trainings under SLURM: a `fedmpi` that waits for a signal in its second round, and what came out."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from tests import mpi
from tests.slurm.cluster import OVER, SECONDS, shell, wait

JOBS = mpi.ROOT / "jobs"
ROUNDS = 3
TINY = (
    "data.root=null", "model.weights=null", "data.height=32", "data.width=16", "data.synthetic.identities=0.2",
    f"federation.rounds={ROUNDS}", "local.epochs=1", "local.last_round_epochs=1", "local.last_round_warmup_epochs=0",
    "local.last_round_decay_epochs=[]", "local.batch_size=16", "local.augment.pad=2", "clustering.k1=6",
    "clustering.k2=2", "clustering.min_samples=2", "comm.segment_mb=0.002", "compute.device=cpu",
)  # fmt: skip
TWO = ("data.clients=[prid,ilids]",)


def tiny(site: Path, *more: str) -> None:
    """Put a `fedmpi` in place that trains a tiny network and waits in the second round for a signal.

    It waits for as long as `hold` lies there, so that a machine may be as fast or slow as it likes.
    """
    (site / "hold").touch()
    sets = " ".join(f"--set {change}" for change in (*TINY, *more))
    driver = f"{sys.executable} {mpi.ROOT / 'tests/driver.py'} hold --"
    environment = f"export PYTHONPATH={mpi.ROOT} OMP_NUM_THREADS=1 DRIVER_OUT={site}"
    shell(site / "bin/fedmpi", [environment, f'exec {driver} "$@" {sets}'])
    shell(site / "bin/mpirun", [f'exec {mpi.find_mpirun()} "$@"'])  # no link: it looks for its helpers beside itself


def stub(site: Path, *lines: str) -> None:
    """Put a `fedmpi` in place that is a shell script."""
    shell(site / "bin/fedmpi", lines)


def science(folder: Path) -> dict[str, str]:
    """Return the checksums of all final models."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.safetensors"))}


def uninterrupted(site: Path) -> dict[str, str]:
    """Return the same of a run in one process, outside SLURM and with nothing to wait for."""
    (site / "hold").unlink(missing_ok=True)
    command = [site / "bin/fedmpi", "train", "fedklpr", "--out", site / "whole"]
    done = subprocess.run(
        command, env=dict(mpi.environment()), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return science(site / "whole")


def wait_for_round_2(cluster, job: int, site: Path, ranks: int) -> None:
    """Return once all clients are in the middle of the second round: the first one is recorded and saved."""
    held = [site / f"held-{rank}" for rank in range(1, ranks)]
    wait("round 2", lambda: all(path.exists() for path in held), lambda: f"{cluster.show(job)}\n{log(site)}")


def go_on(cluster, job: int, site: Path) -> None:
    """Let a job that was put back start again, and run to its end."""
    cluster.wait_for_requeue(job)
    (site / "hold").unlink()
    cluster.start_now(job)


def log(site: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(site.glob("*.log")))


def finished(cluster, job: int, site: Path) -> str:
    """Wait until a job has ended well, and return its log."""
    shown = cluster.wait(job, *OVER)
    assert (shown["JobState"], shown["ExitCode"]) == ("COMPLETED", "0:0"), f"{shown}\n{log(site)}"
    return log(site)


def resumed_after(folder: Path) -> int:
    return json.loads((folder / "summary.json").read_text())["resumed_after"]
