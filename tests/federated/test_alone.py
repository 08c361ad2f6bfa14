"""Training without exchange: against federations of one client, and in every arrangement of ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from safetensors.torch import load_file

from fedmpi.console import View
from fedmpi.record import open_run
from fedmpi.train import train
from tests import mpi
from tests.tiny import write_config

pytestmark = pytest.mark.usefixtures("tiny_net")
DRIVER = Path(__file__).parents[1] / "driver.py"


@pytest.fixture
def run(tiny_config, tmp_path):
    def start(name: str, *overrides: str) -> Path:
        folder = tmp_path / name
        train(MPI.COMM_SELF, tiny_config(*overrides), folder, View(progress=False))
        return folder

    return start


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def same(first: Path, second: Path) -> bool:
    models = load_file(first), load_file(second)
    return all((models[0][name] == models[1][name]).all() for name in models[0])


def test_local_is_a_federation_of_one_for_every_client(run):
    local = run("local", "method=local")
    alone = run("alone", "method=fedavg", "data.clients=[prid]")
    assert same(local / "clients" / "prid.safetensors", alone / "clients" / "prid.safetensors")
    assert not same(local / "clients" / "prid.safetensors", local / "clients" / "ilids.safetensors")
    assert summary(local)["clients"]["prid"]["map_after"] == summary(alone)["clients"]["prid"]["map_after"]


@pytest.mark.parametrize("method", ["local", "centralised"])
def test_nothing_is_sent_but_to_be_evaluated(run, method):
    folder = run(method, f"method={method}", "data.labels=true")
    found = summary(folder)
    assert (found["bytes_up"], found["bytes_down"], found["bytes_dense"], found["saved"]) == (0, 0, 0, 0.0)
    assert found["density"] == 1
    assert all(client["bytes"] == 0 for client in found["clients"].values())
    with open_run(folder / "run.h5") as file:
        assert set(file["messages/table"]["direction"]) == {b"eval"}
        trained = np.isfinite(file["clients/loss_total"])
    assert trained.tolist() == [[True, method == "local"]] * 2


def test_centralised_trains_on_all_images_and_every_client_tests(run, tiny_config):
    folder = run("central", "method=centralised", "data.labels=true")
    with open_run(folder / "run.h5") as file:
        images = file["clients/train_images"][0]
        assert np.isfinite(file["clients/map"]).all()
    sizes = [len(load(tiny_config("method=fedavg"), c).train) for c in (0, 1)]
    assert images.tolist() == [sum(sizes), -1]
    for name in ("prid", "ilids"):
        assert same(folder / "clients" / f"{name}.safetensors", folder / "global.safetensors")


def load(config, index: int):
    from fedmpi.reid.datasets import load_client

    return load_client(config.data, config.run.seed, index)


@pytest.mark.slow
@mpi.needs_mpirun
@pytest.mark.parametrize("method", ["local", "centralised"])
def test_the_same_models_whoever_hosts_the_clients(tmp_path, method):
    config, folders = write_config(tmp_path), []
    for ranks in (None, 2, 3):
        folders.append(tmp_path / f"{method}-{ranks}")
        argv = [DRIVER, "--", "train", config, "--set", f"method={method}", "--out", folders[-1]]
        mpi.succeed(ranks, argv, cwd=tmp_path)
    for folder in folders[1:]:
        for name in ("global", "clients/prid", "clients/ilids"):
            assert same(folder / f"{name}.safetensors", folders[0] / f"{name}.safetensors")
        assert summary(folder)["bytes_evaluation"] == summary(folders[0])["bytes_evaluation"]
