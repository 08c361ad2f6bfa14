"""One real round at the paper's size: every description of configs/paper/ sends the bytes that arithmetic says.

A minute and gigabytes of memory each, so only with `pytest -m full_size`: whole ResNets, 256x128 pixels, a handful of
images per client, on a CPU. FedCAPR, the measure of all, has its eight clients; the others have two of them, since
every client sends the same.
"""

from pathlib import Path

import numpy as np
import pytest

from fedmpi.pruning import Decision
from fedmpi.record import open_run
from tests import mpi

ROOT = Path(__file__).parents[1]
EVERYBODY = ("fedcapr",)
TWO = "data.clients=[prid, viper]"
PARAMETERS = {"resnet50": 23_512_128, "resnet34": 21_285_696}
"""Backbone and BN-neck, by hand: METHOD section 8."""
CONVOLUTIONS = {"resnet50": 23_454_912, "resnet34": 21_267_648}
"""What may be pruned of them."""
DENSE_GB = {"resnet50": 30.10, "resnet34": 27.25}
"""Eight clients, up and down, 20 rounds."""
DENSE = ("fedavg", "fedprox", "fedpav", "fedcapr", "lotteryfl")
"""LotteryFL asks its probe before training, and before the first training nothing is clustered: nobody prunes."""
PRUNED = {"fedklpr": 0.05, "subfedavg": 0.1}
"""Share of every layer that goes in the first round, where the probe accepts."""
ALONE = ("local", "centralised")
ONE_ROUND = (
    *("federation.rounds=1", "local.last_round_epochs=1", "local.last_round_warmup_epochs=0"),
    *("local.last_round_decay_epochs=[]", "local.batch_size=4", "local.images_per_proxy=2", "data.labels=true"),
    *("data.synthetic.identities=0.05", "data.synthetic.images=0.1", "evaluation.global_model=false"),
    "wire.values=raw",
)
ACCEPTING = {
    "fedklpr": ("crr.tau1=1",),
    "subfedavg": ("subfedavg.tolerance=1", "local.last_round_epochs=2"),
}
"""So that a probe of one or two images does not decide, and so that Sub-FedAvg has a first epoch and a last one."""
PAPER = sorted(path.stem for path in (ROOT / "configs" / "paper").glob("*.yaml"))
full_size = pytest.mark.full_size


@pytest.fixture
def one_round(tmp_path):
    def run(name: str) -> Path:
        out = tmp_path / name
        clients = () if method_of(name) in EVERYBODY else (TWO,)
        changes = (*ONE_ROUND, *clients, *ACCEPTING.get(method_of(name), ()))
        sets = [word for change in changes for word in ("--set", change)]
        argv = ["-m", "fedmpi", "train", ROOT / "configs" / "paper" / f"{name}.yaml", *sets, "--out", out]
        mpi.succeed(None, argv, timeout=1500, cwd=tmp_path)
        return out / "run.h5"

    return run


def method_of(name: str) -> str:
    return name.partition("-")[0]


def clients_of(name: str) -> int:
    return 8 if method_of(name) in EVERYBODY else 2


def chosen(*methods: str) -> list[str]:
    return [name for name in PAPER if method_of(name) in methods]


def test_every_description_of_the_paper_has_its_round_here():
    assert sorted(chosen(*DENSE, *PRUNED, *ALONE)) == PAPER


@pytest.mark.slow
@full_size
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("name", chosen(*DENSE))
def test_dense_bytes_of_a_round(one_round, name):
    arch = name.split("-")[1]
    with open_run(one_round(name)) as run:
        up, down = run["clients/bytes_up_values"][0], run["clients/bytes_down_values"][0]
        assert (run["clients/bytes_up_mask"][0] == 0).all()
        assert (run["clients/bytes_down_mask"][0] == 0).all()
        assert np.isfinite(run["clients/loss_total"][0]).all()
        assert run["rounds/bytes_up"][0] == run["rounds/bytes_dense_up"][0]
    assert up.tolist() == down.tolist() == [4 * PARAMETERS[arch]] * clients_of(name)
    assert 20 * 8 * (up.mean() + down.mean()) / 1e9 == pytest.approx(DENSE_GB[arch], abs=0.005)


@pytest.mark.slow
@full_size
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("name", chosen(*PRUNED))
def test_pruned_bytes_of_a_round(one_round, name):
    method, arch = name.split("-")
    with open_run(one_round(name)) as run:
        up, down = run["clients/bytes_up_values"][0], run["clients/bytes_down_values"][0]
        masks, decisions = run["clients/bytes_up_mask"][0], run["clients/crr_decision"][0]
        assert np.isfinite(run["clients/loss_total"][0]).all()
    assert decisions.tolist() == [Decision.ACCEPTED] * clients_of(name)
    assert down.tolist() == [4 * PARAMETERS[arch]] * clients_of(name)
    conv, gone = CONVOLUTIONS[arch], PRUNED[method]
    assert np.allclose(up, 4 * (PARAMETERS[arch] - gone * conv), rtol=1e-5)
    assert (masks > 0).all()
    # at most the entropy of a mask with this share of zeros, and a little
    assert (masks < 1.02 * conv / 8 * -(gone * np.log2(gone) + (1 - gone) * np.log2(1 - gone))).all()


@pytest.mark.slow
@full_size
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("name", chosen(*ALONE))
def test_alone_nothing_is_sent(one_round, name):
    with open_run(one_round(name)) as run:
        assert run["rounds/bytes_up"][0] == run["rounds/bytes_down"][0] == 0
        losses = run["clients/loss_total"][0]
    assert np.isfinite(losses[:1] if name.startswith("centralised") else losses).all()
