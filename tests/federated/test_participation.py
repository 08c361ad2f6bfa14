"""Sampling of clients: who takes part, what the others keep, and that ranks make no difference."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

from fedmpi.comm import Ranks
from fedmpi.comm.ranks import place
from fedmpi.config import load_config
from fedmpi.console import View
from fedmpi.errors import ConfigError
from fedmpi.federated.participation import participants
from fedmpi.record import open_run
from fedmpi.reid.datasets import client_names, load_client
from fedmpi.train import train
from tests import mpi
from tests.test_resume import DRIVER, models
from tests.tiny import write_config

ROUNDS = 4
SETS = (
    "data.clients=[ilids]", "data.split=5", "data.synthetic.identities=1", f"federation.rounds={ROUNDS}",
    "federation.fraction=0.4", "pruning.target=0.9",
    "crr.tau1=1.0", "crr.tau2=0.0",
)  # fmt: skip


def config(fraction: float, seed: int = 0):
    return load_config(None, [f"federation.fraction={fraction}", f"run.seed={seed}"])


class TestDraw:
    @pytest.mark.parametrize(("fraction", "clients", "count"), [
        (1.0, 7, 7), (0.5, 7, 4), (0.4, 5, 2), (0.1, 200, 20), (0.01, 8, 1), (0.3, 10, 3), (0.999, 3, 3),
    ])  # fmt: skip
    def test_so_many_different_ones_in_order(self, fraction, clients, count):
        for number in range(5):
            drawn = participants(config(fraction), clients, number)
            assert len(drawn) == count
            assert list(drawn) == sorted(set(drawn))
            assert set(drawn) <= set(range(clients))

    def test_a_function_of_seed_and_round(self):
        assert participants(config(0.5), 40, 3) == participants(config(0.5), 40, 3)
        assert participants(config(0.5), 40, 3) != participants(config(0.5), 40, 4)
        assert participants(config(0.5), 40, 3) != participants(config(0.5, seed=1), 40, 3)

    def test_every_client_is_as_likely(self):
        """2000 draws of 3 of 10: each client 600 times, with a binomial deviation of 20.5."""
        seen = Counter(c for number in range(2000) for c in participants(config(0.3), 10, number))
        deviation = math.sqrt(2000 * 0.3 * 0.7)
        assert all(abs(seen[c] - 600) < 5 * deviation for c in range(10))


def test_waves_hold_each_client_once_and_each_rank_at_most_once():
    hosts = place(11, 5)
    waves = Ranks.waves(SimpleNamespace(hosts=hosts))
    assert sorted(c for wave in waves for c in wave) == list(range(11))
    for wave in waves:
        assert len({hosts[c] for c in wave}) == len(wave)
    assert len(waves) == 3


class TestSplitOfDrawnPeople:
    def test_parts_are_disjoint_and_drawn_as_in_the_whole(self):
        sets = ["data.clients=[ilids]", "data.height=32", "data.width=16"]
        whole = load_client(load_config(None, sets).data, 3, 0)
        data = load_config(None, [*sets, "data.split=3"]).data
        assert client_names(data, 3) == ("ilids-0", "ilids-1", "ilids-2")
        parts = [load_client(data, 3, index) for index in range(3)]
        pids = [set(part.train.pids.tolist()) for part in parts]
        assert sorted(pid for part in pids for pid in part) == sorted(set(whole.train.pids.tolist()))
        pixels = {whole.train.pixels.name(i): whole.train.pixels.read(i) for i in range(len(whole.train))}
        for part in parts:
            for i in range(len(part.train)):
                np.testing.assert_array_equal(part.train.pixels.read(i), pixels[part.train.pixels.name(i)])
        assert sum(len(part.train) for part in parts) == len(whole.train)

    def test_one_client_must_be_named(self):
        with pytest.raises(ConfigError, match=r"needs data\.root, the folder to split, or one embedded client"):
            load_config(None, ["data.split=3"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_module):
    """The run in one process; its folder."""
    folder = tmp_path_factory.mktemp("alone")
    settings = load_config(write_config(folder), SETS)
    train(MPI.COMM_SELF, settings, folder / "run", View(progress=False))
    return folder / "run"


@pytest.fixture(scope="module")
def tiny_module():
    from fedmpi.federated import learner
    from tests.tiny import tiny_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "initial_model", tiny_model)
        yield


class TestRun:
    def expected(self) -> np.ndarray:
        settings = config(0.4)
        return np.array([[c in participants(settings, 5, r) for c in range(5)] for r in range(ROUNDS)])

    def test_the_log_shows_who_took_part(self, alone):
        part = self.expected()
        assert part.sum(axis=1).tolist() == [2] * ROUNDS
        with open_run(alone) as run:
            np.testing.assert_array_equal(run["clients/participated"], part)
            np.testing.assert_array_equal(run["clients/weight"] > 0, part)
            np.testing.assert_array_equal(np.isfinite(run["clients/loss_total"]), part)
            paid = run.messages[run.messages["direction"] != b"eval"]
            sent = {(int(r), int(c)) for r, c in zip(paid["round"], paid["client"], strict=True)}
            assert sent == set(zip(*np.nonzero(part), strict=True))
            np.testing.assert_array_equal(run["layers/bytes_values"].sum(axis=2) > 0, part)

    def test_who_sits_out_keeps_the_mask(self, alone):
        part = self.expected()
        with open_run(alone) as run:
            density = run["clients/density"]
        before = np.vstack([np.ones(5), density[:-1]])
        assert (density[~part] == before[~part]).all()
        assert (density[part] < before[part]).any()

    def test_resumed_after_a_sampled_round(self, alone, tmp_path, tiny_module):
        from fedmpi.errors import Stopped
        from tests.test_resume import wishing

        settings = load_config(write_config(tmp_path), SETS)
        go = (MPI.COMM_SELF, settings, tmp_path / "run", View(progress=False))
        with pytest.raises(Stopped):
            train(*go, stopper=wishing(0, 0, 10))
        train(*go, resume="auto")
        assert models(tmp_path / "run") == models(alone)

    @pytest.mark.mpi
    @mpi.needs_mpirun
    @pytest.mark.parametrize("ranks", [3, 6])
    def test_any_number_of_ranks_gives_the_same_bits(self, alone, tmp_path, ranks):
        sets = [word for change in SETS for word in ("--set", change)]
        mpi.succeed(ranks, [DRIVER, "--", "train", write_config(tmp_path), "--out", tmp_path / "run", *sets])
        assert models(tmp_path / "run") == models(alone)
        with open_run(tmp_path / "run") as run, open_run(alone) as reference:
            for name in ("participated", "density", "map", "weight", "loss_total", "bytes_up_values"):
                np.testing.assert_array_equal(run[f"clients/{name}"], reference[f"clients/{name}"])
