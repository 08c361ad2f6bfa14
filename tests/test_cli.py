"""The command line: exit codes and the one line that a person reads; rarely, what several ranks make of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpi import __version__, cli, farewell
from fedmpi.errors import (
    ConfigError,
    DataError,
    DeviceError,
    FedmpiError,
    LaunchError,
    RankFailure,
    SchemaError,
    Stopped,
    StorageError,
    TrainingError,
    WireError,
)
from fedmpi.record import open_run
from fedmpi.reid import synthetic
from tests import mpi
from tests.tiny import write_config

DRIVER = Path(__file__).with_name("driver.py")


@pytest.fixture
def fedmpi(monkeypatch, capfd, tiny_net):
    """Return a function that runs the command line in this process: exit code, stdout, stderr."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # whatever is set in the run is undone

    def run(*argv: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedmpi", *map(str, argv)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return end.value.code, out, err

    return run


@pytest.fixture
def config(tmp_path) -> Path:
    return write_config(tmp_path)


class TestHelp:
    def test_version(self, fedmpi):
        assert fedmpi("--version") == (0, f"fedmpi {__version__}\n", "")

    def test_names_all_commands_and_the_first_run(self, fedmpi):
        code, out, _ = fedmpi("--help")
        assert code == 0
        assert "mpirun -n 9 fedmpi train" in out
        for command in ("train", "config", "data", "doctor"):
            assert f"\n  {command} " in out

    def test_all_commands_can_be_loaded(self, fedmpi):
        for command in cli.cli.list_commands(None):
            assert fedmpi(command, "--help")[0] == 0

    @pytest.mark.parametrize("option", ["--help", "--version"])
    def test_is_quick(self, option):
        """It waits for nothing heavy: what makes it slow is what it imports."""
        code = "import runpy, sys\ntry: runpy.run_module('fedmpi', run_name='__main__')\n"
        code += "except SystemExit: print(*sys.modules)"
        said = subprocess.run([sys.executable, "-c", code, option], check=True, capture_output=True, text=True).stdout
        heavy = {"torch", "torchvision", "mpi4py", "numpy", "scipy", "sklearn", "h5py", "pydantic", "yaml", "PIL"}
        assert not heavy & set(said.splitlines()[-1].split())


class TestUsage:
    def error(self, result: tuple[int, str, str]) -> str:
        code, out, err = result
        assert (code, out) == (2, ""), err
        assert err.startswith("fedmpi: error: ")
        assert "Traceback" not in err
        return err.removeprefix("fedmpi: error: ").rstrip("\n")

    def test_unknown_key_has_its_place(self, fedmpi, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("mine.yaml").write_text("run:\n  name: x\nfederation:\n  roundz: 3\nlocal: {epochs: 0}\n")
        lines = self.error(fedmpi("train", "mine.yaml", "--set", "crr.tau1=much")).splitlines()
        assert lines[0].startswith("mine.yaml:4:3: federation.roundz: unknown key; did you mean 'rounds'?")
        assert lines[1].startswith("mine.yaml:5:17: local.epochs: ")
        assert lines[2].startswith("--set crr.tau1=much: ")
        assert len(lines) == 3

    def test_unknown_option(self, fedmpi):
        assert self.error(fedmpi("train", "--rouns", "3")).startswith("No such option")

    def test_unknown_command(self, fedmpi):
        assert self.error(fedmpi("trian")).startswith("No such command 'trian'")

    def test_missing_config(self, fedmpi):
        assert self.error(fedmpi("train", "nowhere.yaml")).startswith("nowhere.yaml: no such file")

    def test_a_folder_in_use_is_left_alone(self, fedmpi, config, tmp_path):
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "run.h5").write_text("precious")
        error = self.error(fedmpi("train", config, "--out", tmp_path / "old"))
        assert "old is not empty; a run never overwrites another: choose a new --out" in error
        assert {p.name: p.read_text() for p in (tmp_path / "old").iterdir()} == {"run.h5": "precious"}

    def test_missing_data(self, fedmpi, config, tmp_path):
        error = self.error(fedmpi("train", config, "--out", tmp_path / "run", "--set", "data.root=/nowhere/at/all"))
        assert error.startswith("data.root: /nowhere/at/all is not a folder; expected <client>/pytorch/")
        assert not (tmp_path / "run").exists()

    def test_singletons(self, fedmpi, config, monkeypatch, tmp_path):
        monkeypatch.setenv("PMI_SIZE", "4")
        error = self.error(fedmpi("train", config, "--out", tmp_path / "run"))
        assert error.startswith("PMI_SIZE=4, but MPI sees one rank: these are 4 separate runs")
        assert not (tmp_path / "run").exists()


class TestTrain:
    def test_writes_to_runs_below_the_working_directory(self, fedmpi, config, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, out, err = fedmpi("train", config, "--set", "run.name=mine", "--set", "federation.rounds=1")
        assert (code, err) == (0, "")
        (folder,) = (tmp_path / "runs").iterdir()
        assert folder.name.startswith("mine-20")
        assert f"files in runs/{folder.name}/: run.h5" in out
        lines = out.splitlines()
        assert lines[0] == f"fedmpi {__version__}: mine"
        assert sum(line.strip().startswith("1/1 ") for line in lines) == 1
        assert max(map(len, lines)) <= 120

    def test_no_gpu(self, fedmpi, config, tmp_path, monkeypatch):
        import torch

        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        code, out, err = fedmpi("train", config, "--out", tmp_path / "run", "--set", "compute.device=cuda")
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        assert "compute.device is cuda, but rank 0 sees no GPU" in err

    def test_nan_loss(self, fedmpi, config, tmp_path):
        code, _, err = fedmpi("train", config, "--out", tmp_path / "run", "--set", "loss.temperature=1e-40")
        assert code == 1
        assert err.startswith("fedmpi: error: local training: client 0: the loss is not finite in round 0, epoch 0")
        assert err.count("\n") == 1

    def test_a_bug_shows_where_and_asks_for_a_report(self, fedmpi, config, tmp_path, monkeypatch):
        from fedmpi.federated.client import Client

        def fail(*_):
            raise IndexError("out of range")

        monkeypatch.setattr(Client, "train", fail)
        code, _, err = fedmpi("train", config, "--out", tmp_path / "run")
        assert code == 70
        assert err.startswith("fedmpi: error: this is a bug in fedmpi; please report these lines:\nTraceback")
        assert err.rstrip().endswith("local training: client 0: IndexError: out of range")

    def test_interrupted(self, fedmpi, config, tmp_path, monkeypatch):
        from fedmpi.federated.client import Client

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(Client, "train", interrupt)
        code, _, err = fedmpi("train", config, "--out", tmp_path / "run")
        assert (code, err.strip()) == (130, "fedmpi: error: interrupted")
        with open_run(tmp_path / "run") as record:
            assert record.status == "failed"


class TestCorruptImages:
    @pytest.fixture
    def tree(self, tiny_config, tmp_path) -> Path:
        """Write the tiny federation's images as files."""
        synthetic.write_tree(tmp_path / "data", tiny_config().data, 0)
        return tmp_path / "data"

    def test_one_is_named_and_counted_and_training_goes_on(self, config, tree, tmp_path):
        victim = sorted((tree / "prid" / "pytorch" / "train_all").rglob("*.png"))[3]
        victim.write_bytes(victim.read_bytes()[:200])
        changes = ("--set", f"data.root={tree}", "--set", "data.max_bad_share=0.1", "--set", "data.name_images=true")
        job = mpi.succeed(None, [DRIVER, "--", "train", config, "--out", tmp_path / "run", *changes])
        (line,) = job.err.splitlines()
        assert line.startswith(f"warning: client 0: prid/train_all/{victim.name}: cannot be read as an image: ")
        assert line.endswith("; going on without it")
        with open_run(tmp_path / "run") as record:
            assert record["clients/bad_images"].tolist() == [[1, 0], [1, 0]]
            images = len(list((tree / "prid" / "pytorch" / "train_all").rglob("*.png")))
            assert record["clients/train_images"][:, 0].tolist() == [images - 1] * 2

    def test_too_many_are_an_error(self, fedmpi, config, tree, tmp_path):
        for victim in sorted((tree / "ilids" / "pytorch" / "gallery").rglob("*.png"))[::2]:
            victim.write_bytes(b"nothing")
        code, _, err = fedmpi("train", config, "--out", tmp_path / "run", "--set", f"data.root={tree}")
        assert code == 2
        assert err.startswith("fedmpi: error: evaluating the untrained model: client 1: ")
        assert (
            "images cannot be read, more than data.max_bad_share=0.01 allows; the first is ilids/gallery image 1" in err
        )
        assert err.count("\n") == 1

    def test_files_give_the_same_models_as_memory(self, fedmpi, config, tree, tmp_path):
        assert fedmpi("train", config, "--out", tmp_path / "a")[0] == 0
        assert fedmpi("train", config, "--out", tmp_path / "b", "--set", f"data.root={tree}")[0] == 0
        for name in ("global.safetensors", "clients/prid.safetensors"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


class TestExitCodes:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (ConfigError("x"), 2),
            (DataError("x"), 2),
            (LaunchError("x"), 2),
            (WireError("x"), 1),
            (SchemaError("x"), 1),
            (DeviceError("x"), 1),
            (TrainingError("x"), 1),
            (StorageError("x"), 1),
            (RankFailure("x"), 1),
            (Stopped("x"), 75),
            (KeyError("x"), 70),
            (MemoryError(), 70),
            (KeyboardInterrupt(), 130),
            (SystemExit(3), 3),
            (SystemExit(0), 1),
            (SystemExit("why"), 1),
        ],
    )
    def test_of_every_kind_of_error(self, error, code):
        assert farewell.exit_code(error) == code

    def test_the_list_above_is_complete(self):
        listed = {ConfigError, DataError, LaunchError, WireError, SchemaError, DeviceError, TrainingError, RankFailure}
        listed |= {StorageError, Stopped}
        assert {kind for kind in FedmpiError.__subclasses__() if kind.__module__ == "fedmpi.errors"} == listed


@pytest.mark.mpi
@mpi.needs_mpirun
class TestRanks:
    """Several ranks that all find the same mistake speak once, and agree on the exit code."""

    def run(self, ranks: int, *argv: object, env=None) -> mpi.Job:
        return mpi.run(ranks, ["-m", "fedmpi", "train", *argv], env=env)

    @pytest.mark.parametrize(
        ("argv", "text"),
        [
            (["--set", "federation.roundz=3"], "--set federation.roundz=3: unknown key; did you mean 'rounds'?"),
            (["--rouns"], "No such option"),
        ],
    )
    def test_mistakes_that_need_no_mpi(self, argv, text):
        job = self.run(4, *argv)
        assert job.code == 2, str(job)
        (line,) = job.lines()
        assert line.startswith(f"fedmpi: error: {text}")

    def test_too_many_ranks(self, config, tmp_path):
        job = self.run(4, config, "--out", tmp_path / "run")
        assert job.code == 2, str(job)
        (line,) = job.lines()
        assert line.startswith(
            "fedmpi: error: 4 ranks for 2 clients: 1 would idle; use at most mpirun -n 3 (one server"
        )
        assert not (tmp_path / "run").exists()

    def test_an_error_of_rank_0_alone_is_everybodys_exit_code(self, config, tmp_path):
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "file").touch()
        job = self.run(3, config, "--out", tmp_path / "old", "--set", "model.arch=resnet18")
        assert job.code == 2, str(job)
        (line,) = job.lines()
        assert line.startswith("fedmpi: error: making the run folder: rank 0 (")
        assert "old is not empty" in line

    def test_singletons_of_another_launcher_say_it_once(self, config):
        job = self.run(1, config, env={"SLURM_STEP_NUM_TASKS": "4"})
        assert job.code == 2, str(job)
        (line,) = job.lines()
        assert line.startswith("fedmpi: error: SLURM_STEP_NUM_TASKS=4, but MPI sees one rank")
