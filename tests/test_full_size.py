"""One real round at the paper's size: the descriptions of configs/paper/ count the bytes that METHOD section 8 says.

Minutes and a few gigabytes of memory, so only with `pytest -m full_size`: eight ResNets, 256x128 pixels, a handful of
images per client, on a CPU.
"""

from pathlib import Path

import numpy as np
import pytest

from fedmpi.record import open_run
from tests import mpi

ROOT = Path(__file__).parents[1]
CLIENTS = 8
PARAMETERS = {"resnet50": 23_512_128, "resnet34": 21_285_696}
"""Backbone and BN-neck, by hand: METHOD section 8."""
CONVOLUTIONS = {"resnet50": 23_454_912, "resnet34": 21_267_648}
"""What may be pruned of them."""
DENSE_GB = {"resnet50": 30.10, "resnet34": 27.25}
"""Eight clients, up and down, 20 rounds."""
ONE_ROUND = (
    *("federation.rounds=1", "local.last_round_epochs=1", "local.last_round_warmup_epochs=0"),
    *("local.last_round_decay_epochs=[]", "local.batch_size=4", "local.images_per_proxy=2", "data.labels=true"),
    *("data.synthetic.identities=0.05", "data.synthetic.images=0.1", "evaluation.global_model=false"),
    "wire.values=raw",
)


@pytest.fixture(scope="module")
def one_round(tmp_path_factory):
    def run(name: str, *overrides: str) -> Path:
        out = tmp_path_factory.mktemp("full") / name
        sets = [word for change in (*ONE_ROUND, *overrides) for word in ("--set", change)]
        argv = ["-m", "fedmpi", "train", ROOT / "configs" / "paper" / f"{name}.yaml", *sets, "--out", out]
        mpi.succeed(None, argv, timeout=1500, cwd=out.parent)
        return out

    return run


@pytest.mark.slow
@pytest.mark.full_size
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("arch", PARAMETERS)
def test_dense_bytes_of_a_round(one_round, arch):
    with open_run(one_round(f"fedcapr-{arch}") / "run.h5") as run:
        up, down = run["clients/bytes_up_values"][0], run["clients/bytes_down_values"][0]
        assert (run["clients/bytes_up_mask"][0] == 0).all()
        assert (run["clients/bytes_down_mask"][0] == 0).all()
        assert np.isfinite(run["clients/loss_total"][0]).all()
        assert run["rounds/bytes_up"][0] == run["rounds/bytes_dense_up"][0]
    assert up.tolist() == down.tolist() == [4 * PARAMETERS[arch]] * CLIENTS
    assert 20 * (up.sum() + down.sum()) / 1e9 == pytest.approx(DENSE_GB[arch], abs=0.005)


@pytest.mark.slow
@pytest.mark.full_size
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("arch", PARAMETERS)
def test_fedklpr_at_full_size_sends_5_percent_less_up(one_round, arch):
    with open_run(one_round(f"fedklpr-{arch}", "crr.enabled=false") / "run.h5") as run:
        up, down = run["clients/bytes_up_values"][0], run["clients/bytes_down_values"][0]
        masks = run["clients/bytes_up_mask"][0]
    assert down.tolist() == [4 * PARAMETERS[arch]] * CLIENTS
    conv = CONVOLUTIONS[arch]
    assert np.allclose(up, 4 * (PARAMETERS[arch] - 0.05 * conv), rtol=1e-5)
    assert (masks > 0).all()
    # at most the entropy of a mask with 5 % zeros, and a little
    assert (masks < 1.02 * conv / 8 * -(0.05 * np.log2(0.05) + 0.95 * np.log2(0.95))).all()
