"""A sweep: which runs there are, which are done again, and the table at the end."""

import json
import statistics
import sys

import pytest
from click.testing import CliRunner

from fedmpi import sweep
from fedmpi.cli import cli
from fedmpi.config import load_config
from fedmpi.errors import ConfigError, Stopped
from tests import mpi
from tests.tiny import write_config


@pytest.fixture
def configs(tmp_path):
    """Two descriptions of tiny runs."""
    base = write_config(tmp_path)
    dense = tmp_path / "dense.yaml"
    dense.write_text(f"base: {base.name}\nmethod: fedavg\n")
    return [str(base), str(dense)]


def finish(job: sweep.Job, **figures: float) -> None:
    """Leave behind what a finished run would."""
    job.folder.mkdir(parents=True)
    content = {"config_digest": job.digest, "rank1_after": 0.5, "map_after": 0.25, "saved": 0.4, "bytes_up": 10**6}
    (job.folder / "summary.json").write_text(json.dumps(content | {"bytes_down": 2 * 10**6} | figures))


class TestPlan:
    def test_every_configuration_with_every_seed(self, configs, tmp_path):
        jobs = sweep.plan(configs, [0, 3], ["local.epochs=2"], tmp_path / "out")
        assert [job.name for job in jobs] == ["tiny-s0", "tiny-s3", "dense-s0", "dense-s3"]
        assert len({job.digest for job in jobs}) == 4
        assert jobs[3].digest == load_config(configs[1], ["local.epochs=2", "run.seed=3"]).digest()

    def test_the_command_is_that_of_a_single_run(self, configs, tmp_path):
        job = sweep.plan(configs[:1], [3], ["local.epochs=2"], tmp_path)[0]
        assert job.command(["mpirun", "-n", "3"]) == [
            *("mpirun", "-n", "3", sys.executable, "-m", "fedmpi", "train", configs[0]),
            *("--set", "local.epochs=2", "--set", "run.seed=3", "--out", str(tmp_path / "tiny-s3")),
            *("--resume", "auto", "--no-progress"),
        ]

    def test_mistakes(self, configs, tmp_path):
        with pytest.raises(ConfigError, match="seeds of a sweep are given by --seeds"):
            sweep.plan(configs, [0], ["run.seed=1"], tmp_path)
        with pytest.raises(ConfigError, match="another configuration of this sweep is called 'tiny'"):
            sweep.plan([configs[0]] * 2, [0], [], tmp_path)
        with pytest.raises(ConfigError, match=r"local\.epoch=1: unknown key"):
            sweep.plan(configs, [0], ["local.epoch=1"], tmp_path)

    def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(self, configs, tmp_path):
        finish(sweep.plan(configs, [0], [], tmp_path)[0])
        changed = sweep.plan(configs, [0], ["local.epochs=3"], tmp_path)[0]
        with pytest.raises(ConfigError, match="tiny-s0 holds a run with other settings"):
            changed.summary()


def test_table_by_hand():
    runs = {"one": [{"rank1_after": 0.5, "map_after": 0.3, "bytes_up": 1e6, "bytes_down": 2e6, "saved": 0.4}] * 1}
    runs["other"] = [{**runs["one"][0], "rank1_after": x, "bytes_up": 3e6} for x in (0.4, 0.5, 0.7)]
    lines = sweep.table(runs).splitlines()
    assert lines[1].split() == ["one", "1", "50.0", "30.0", "3.0", "40.0"]
    spread = f"{100 * statistics.stdev([0.4, 0.5, 0.7]):.1f}"
    assert lines[2].split() == ["other", "3", "53.3", "±", spread, "30.0", "±", "0.0", "5.0", "40.0"]


class TestCommand:
    def call(self, *arguments, code=0):
        done = CliRunner().invoke(cli, ["sweep", *map(str, arguments)], standalone_mode=code == 2)
        assert (done.exit_code == 0) == (code == 0), done.output
        return done

    def test_finished_runs_are_skipped_and_failures_named(self, configs, tmp_path, monkeypatch):
        jobs = sweep.plan(configs, [0, 1], [], tmp_path / "out")
        finish(jobs[0])
        ran = []

        def execute(job, launcher):
            ran.append((job.name, launcher))
            if job.name == "dense-s0":
                return 1
            finish(job)
            return 0

        monkeypatch.setattr(sweep, "execute", execute)
        monkeypatch.setattr(sweep, "compare", lambda *_: None)
        arguments = (*configs, "--seeds", "0,1", "--out", tmp_path / "out", "--launcher", "mpirun -n 3")
        done = self.call(*arguments, code=1)
        assert [name for name, _ in ran] == ["tiny-s1", "dense-s0", "dense-s1"]
        assert ran[0][1] == ["mpirun", "-n", "3"]
        assert "1 of 4 runs failed: dense-s0" in str(done.exception)
        assert "[1/4] tiny-s0: finished before" in done.output
        assert done.output.splitlines()[-1].split()[:2] == ["dense", "1"]
        ran.clear()
        monkeypatch.setattr(sweep, "execute", lambda job, launcher: ran.append(job.name) or finish(job) or 0)
        self.call(*arguments)
        assert ran == ["dense-s0"]

    def test_a_run_that_was_stopped_stops_the_sweep(self, configs, tmp_path, monkeypatch):
        ran = []
        monkeypatch.setattr(sweep, "execute", lambda job, launcher: ran.append(job.name) or 75)
        done = self.call(*configs, "--out", tmp_path / "out", code=75)
        assert isinstance(done.exception, Stopped)
        assert ran == ["tiny-s0"]

    def test_one_task_of_an_array(self, configs, tmp_path, monkeypatch):
        ran = []
        monkeypatch.setattr(sweep, "execute", lambda job, launcher: ran.append(job.name) or finish(job) or 0)
        self.call(*configs, "--seeds", "5,6", "--out", tmp_path / "out", "--task", "2")
        assert ran == ["dense-s5"]
        done = self.call(*configs, "--seeds", "5,6", "--out", tmp_path / "out", "--task", "4", code=1)
        assert "this sweep has 4 runs, 0 to 3" in str(done.exception)

    @pytest.mark.parametrize("seeds", ["0,0", "a", "1,,2", "-1", ""])
    def test_seeds_that_are_none(self, configs, tmp_path, seeds):
        assert "--seeds" in self.call(*configs, f"--seeds={seeds}", "--out", tmp_path, code=2).output

    def test_not_under_mpirun(self, configs, tmp_path, monkeypatch):
        monkeypatch.setenv("PMI_RANK", "0")
        assert "call it without mpirun" in str(self.call(*configs, "--out", tmp_path, code=1).exception)

    def test_dry_run_prints_what_is_left(self, configs, tmp_path):
        finish(sweep.plan(configs, [0], [], tmp_path)[0])
        (line,) = self.call(*configs, "--out", tmp_path, "--dry-run").output.splitlines()
        assert line.endswith(
            f"train {configs[1]} --set run.seed=0 --out {tmp_path / 'dense-s0'} --resume auto --no-progress"
        )


@pytest.mark.slow
def test_a_real_sweep(tmp_path):
    """ResNets of a few steps: two methods, run and compared, and nothing to do the second time."""
    (tmp_path / "few.yaml").write_text(
        "base: quickstart\ndata: {clients: [prid, ilids], height: 32, width: 16, synthetic: {identities: 0.2}}\n"
        "federation: {rounds: 1}\nlocal: {last_round_epochs: 1, lr_late_round: 9}\n"
    )
    (tmp_path / "dense.yaml").write_text("base: few.yaml\nmethod: fedavg\n")
    argv = ["-m", "fedmpi", "sweep", "few.yaml", "dense.yaml", "--out", "out", "--baseline", "dense"]
    job = mpi.succeed(None, argv, cwd=tmp_path, timeout=500)
    assert (tmp_path / "out" / "few-s0" / "summary.json").is_file()
    assert (tmp_path / "out" / "few-s0.log").read_text().startswith("fedmpi ")
    assert "few" in job.out
    assert "dense" in job.out
    again = mpi.succeed(None, argv, cwd=tmp_path, timeout=500)
    assert again.out.count("finished before") == 2
