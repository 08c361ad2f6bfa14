"""The scripts of jobs/ on a real SLURM: as they are, but with a small program in the place of `fedmpi`."""

import json
import sys

import pytest

from tests import mpi
from tests.slurm.cluster import OVER, SECONDS, reason_to_skip, shell, wait
from tests.slurm.trainings import (
    JOBS,
    ROUNDS,
    TWO,
    finished,
    go_on,
    log,
    resumed_after,
    science,
    stub,
    tiny,
    uninterrupted,
    wait_for_round_2,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip() or "runs"),
    pytest.mark.timeout(2400),
]


@pytest.mark.skipif(mpi.is_open_mpi(), reason="starts ranks with MPICH's PMI2: pip install 'fedmpi[mpich]'")
class TestTrainings:
    """Real ranks, real rounds."""

    def test_preempted_requeued_resumed_on_nine_ranks_over_three_nodes(self, cluster, site):
        tiny(site)
        options = ["--nodes=3", "--ntasks-per-node=3", "--gpus-per-node=3"]
        job = cluster.submit(*options, JOBS / "preemptible.sbatch", cwd=site)
        folder = site / f"runs/preemptible-{job}"
        wait_for_round_2(cluster, job, site, 9)
        everything = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
        urgent = cluster.submit(*everything, cwd=site)
        cluster.wait(urgent, "COMPLETED")
        go_on(cluster, job, site)
        text = finished(cluster, job, site)
        assert "start 0 on n[1-3]: srun --mpi=pmi2 fedmpi train" in text
        assert "start 1 on n[1-3]" in text
        assert resumed_after(folder) >= 1
        assert json.loads((folder / "summary.json").read_text())["ranks"] == 9
        assert science(folder) == uninterrupted(site)

    def test_a_time_limit_under_srun(self, cluster, site, two):
        tiny(site, *TWO)
        job = cluster.submit("--ntasks=3", "--ntasks-per-node=3", JOBS / "train_9ranks.sbatch", cwd=site)
        folder = site / f"runs/train_9ranks-{job}"
        wait_for_round_2(cluster, job, site, 3)
        cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=2")  # the notice of 120 s is due at once
        cluster.wait_for_requeue(job)
        assert "stopped: SIGUSR1 came; " in log(site)
        assert "exit code 75" in log(site)
        cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
        go_on(cluster, job, site)
        finished(cluster, job, site)
        assert 1 <= resumed_after(folder) < ROUNDS
        assert science(folder) == two

    def test_a_signal_to_the_script_under_mpirun(self, cluster, site, two):
        tiny(site, *TWO)
        options = "job fedklpr --launcher mpirun --ranks 3 --name x"
        script = cluster.call(sys.executable, "-m", "fedmpi", *options.split(), cwd=mpi.ROOT)
        (site / "x.sbatch").write_text(script)
        job = cluster.submit("--gpus-per-node=0", site / "x.sbatch", cwd=site)
        folder = site / f"runs/x-{job}"
        wait_for_round_2(cluster, job, site, 3)
        cluster.call("scancel", "--batch", "--signal=USR1", job)
        cluster.wait_for_requeue(job)
        assert "stopped: SIGUSR1 came; " in log(site)
        go_on(cluster, job, site)
        text = finished(cluster, job, site)
        assert "start 1 on n1: mpirun -n 3 fedmpi train" in text
        assert science(folder) == two

    def test_a_start_that_was_killed_does_not_keep_the_next_from_starting(self, cluster, site):
        """MPICH leaves shared memory behind that is named after job and step, and a requeued job keeps its number."""
        program = (
            "import os, pathlib, time; from mpi4py import MPI; comm = MPI.COMM_WORLD; comm.Barrier(); "
            'start = os.environ.get("SLURM_RESTART_COUNT", "0"); '
            'pathlib.Path(f"start-{start}-{comm.rank}").write_text(str(comm.size)); '
            'start == "0" and time.sleep(900)'
        )
        environment = f"export PYTHONPATH={mpi.ROOT}"
        shell(site / "bin/fedmpi", [environment, f"exec {sys.executable} -c '{program}'"])
        job = cluster.submit("--ntasks=2", "--gpus-per-node=0", JOBS / "train_9ranks.sbatch", cwd=site)
        mpi.wait_for([site / "start-0-0", site / "start-0-1"], SECONDS)
        cluster.call("scancel", "--signal=KILL", f"{job}.0")
        cluster.wait(job, "FAILED")
        (site / "start-0-0").unlink()
        cluster.call("scontrol", "requeue", job)
        cluster.start_now(job)
        finished(cluster, job, site)
        assert [(site / f"start-1-{rank}").read_text() for rank in range(2)] == ["2", "2"]


class TestScripts:
    """What the scripts hand over, and what they do with an exit code: no training needed."""

    def test_requeue_by_hand_starts_with_the_same_command(self, cluster, site):
        stub(site, 'echo "$SLURM_PROCID $*" >> said', '[ "${SLURM_RESTART_COUNT:-0}" = 1 ] || sleep 60')
        job = cluster.submit("--ntasks=1", JOBS / "train_9ranks.sbatch", cwd=site)
        wait("the first start", (site / "said").exists, lambda: log(site))
        cluster.call("scontrol", "requeue", job)
        cluster.start_now(job)
        finished(cluster, job, site)
        first, second = (site / "said").read_text().splitlines()
        assert first == second
        assert first == (
            "0 train fedklpr --set data.root=benchmarks --set model.weights=resnet50.pth "
            f"--out runs/train_9ranks-{job} --resume auto"
        )

    @pytest.mark.parametrize("code", [2, 70])
    def test_other_exit_codes_end_the_job(self, cluster, site, code):
        stub(site, f"exit {code}")
        job = cluster.submit("--ntasks=1", JOBS / "train_9ranks.sbatch", cwd=site)
        assert cluster.wait(job, "COMPLETED", "FAILED")["ExitCode"] == f"{code}:0"

    def test_a_run_that_is_killed_after_it_was_told_to_stop_is_put_back(self, cluster, site):
        """As a rank is whose batch takes too long; the second start is an ordinary failure, which ends the job."""
        stub(site, "trap 'kill -KILL $$' USR1", 'echo x >> said; [ "${SLURM_RESTART_COUNT:-0}" = 1 ] && exit 1',
             "while :; do sleep 0.1; done")  # fmt: skip
        job = cluster.submit("--ntasks=1", JOBS / "train_9ranks.sbatch", cwd=site)
        wait("the first start", (site / "said").exists, lambda: log(site))
        cluster.call("scancel", "--batch", "--signal=USR1", job)
        cluster.wait_for_requeue(job)
        assert "exit code 137" in log(site)
        cluster.start_now(job)
        assert cluster.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "1:0"

    def test_a_job_that_was_cancelled_stays_so(self, cluster, site):
        stub(site, "trap 'exit 75' TERM", "touch started", "sleep 60 & wait $!")
        job = cluster.submit("--ntasks=1", JOBS / "train_9ranks.sbatch", cwd=site)
        wait("the start", (site / "started").exists, lambda: log(site))
        cluster.call("scancel", job)
        wait("the end", lambda: "exit code 75" in log(site), lambda: log(site))
        assert cluster.wait(job, *OVER)["JobState"] == "CANCELLED"
        assert cluster.show(job)["Restarts"] == "0"
        assert "cancelled, so not put back" in log(site)

    def test_one_of_an_array_goes_back_alone(self, cluster, site):
        """The last one of an array has the array's own number, by which SLURM means all of them."""
        (site / "said").touch()
        own = '[ "$SLURM_JOB_ID" = "$SLURM_ARRAY_JOB_ID" ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ]'
        stub(site, 'echo "$SLURM_ARRAY_TASK_ID" >> said', f"{own} && exit 75", "exit 0")
        options = ["--ntasks=1", "--gpus-per-node=0", "--array=0-2"]
        first = cluster.submit(*options, JOBS / "ablation_array.sbatch", cwd=site)
        wait("all", lambda: len((site / "said").read_text().split()) == 3, lambda: log(site))
        wait("one to end", lambda: "exit code 75" in log(site), lambda: log(site))
        back = next(p.stem.split("_")[-1] for p in site.glob("*.log") if "exit code 75" in p.read_text())
        cluster.start_now(f"{first}_{back}")
        finished(cluster, f"{first}_{back}", site)
        assert sorted((site / "said").read_text().split()) == sorted(["0", "1", "2", back])
        assert log(site).count("exit code 0") == 3

    def test_ranks_of_the_multinode_script_lie_evenly(self, cluster, site):
        stub(site, 'echo "$SLURM_PROCID $SLURM_NODEID $CUDA_VISIBLE_DEVICES" >> said', "sleep 1")
        job = cluster.submit(JOBS / "train_multinode.sbatch", cwd=site)
        text = finished(cluster, job, site)
        said = sorted((site / "said").read_text().splitlines())
        assert said == [f"{rank} {int(rank > 4)} 0,1,2,3" for rank in range(9)]
        assert "Warning" not in text

    def test_the_array_runs_every_variant_with_every_seed_once(self, cluster, site):
        stub(site, 'echo "$*" >> said-$SLURM_ARRAY_TASK_ID')
        script = JOBS / "ablation_array.sbatch"
        first = cluster.submit("--ntasks=1", "--gpus-per-node=0", "--array=0,4,20", script, cwd=site)
        wait("the array", lambda: not cluster.run("squeue", "-h", "-j", first).stdout.strip(), lambda: log(site))
        said = {
            p.name: p.read_text().split("--set model.weights=resnet50.pth ")[1].strip() for p in site.glob("said-*")
        }
        runs = f"--out runs/ablation_array-{first}"
        assert said == {
            "said-0": f"--set run.seed=0 {runs}/unchanged-seed0 --resume auto",
            "said-4": f"--set pruning.enabled=false --set run.seed=1 {runs}/pruning.enabled=false-seed1 --resume auto",
            "said-20": f"--set sas.enabled=false --set run.seed=2 {runs}/sas.enabled=false-seed2 --resume auto",
        }

    def test_the_report_waits_for_a_training_that_was_put_back(self, cluster, site):
        stub(site, 'echo train >> "$(dirname "$0")/../said"', '[ "${SLURM_RESTART_COUNT:-0}" = 1 ] || exit 75')
        shell(site / "bin/python", ['echo "$@" >> said'])
        (site / "jobs").symlink_to(JOBS)
        printed = cluster.call("jobs/train_then_report.sh", "--ntasks=1", "--gpus-per-node=0", cwd=site, OUT="runs/a b")
        training, report = (int(part.split()[-1]) for part in printed.split(",")[:2])
        cluster.start_now(training)
        finished(cluster, report, site)
        assert (site / "said").read_text().splitlines() == ["train", "train", "analysis/report.py runs/a b"]
        assert "folder: runs/a b" in printed
