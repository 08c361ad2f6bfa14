import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from fedmpi import logbook
from fedmpi.comm import Direction, Traffic
from fedmpi.federated.weighting import Weights
from fedmpi.logbook import Totals
from fedmpi.pruning import Decision
from fedmpi.record.messages import DIRECTIONS, MASK_MODES, check_messages, traffic
from fedmpi.record.schema import CrrDecision, variables
from fedmpi.sparse import Layout, Mask, MaskMode


def message(direction: Direction, client: int = 0, *, values: int = 0, dense: int = 0, mode: int = 0) -> Traffic:
    return Traffic(
        round=3,
        client=client,
        direction=direction,
        header=128,
        mask=10,
        values=values,
        buffers=20,
        scalars=8,
        dense=dense,
        mask_mode=mode,
        coding=0,
        start=2.5,
        seconds=0.5,
    )


MESSAGES = [
    message(Direction.DOWN, 0, values=1000, dense=2000),
    message(Direction.DOWN, 1, values=500, dense=2000),
    message(Direction.REQUEST, 0),
    message(Direction.RECOVER, 1, values=40),
    message(Direction.UP, 0, values=800, dense=2100),
    message(Direction.UP, 1, values=400, dense=2100),
    message(Direction.EVALUATE, 0, values=4000, dense=4000),
]
REST = 128 + 10 + 20 + 8


class TestMessageTable:
    def test_rows(self):
        table = logbook.message_table(MESSAGES, started=1000.0)
        check_messages(table, 3, 2)
        assert table["direction"].tolist() == [b"down", b"down", b"request", b"recover", b"up", b"up", b"eval"]
        np.testing.assert_array_equal(table["bytes"], [m.values + REST for m in MESSAGES])
        np.testing.assert_array_equal(table["dense_bytes"], [m.dense for m in MESSAGES])
        assert set(table["start"]) == {1002.5}
        assert set(table["seconds"]) == {0.5}
        sums = traffic(table, 2)
        assert sums["bytes_up_values"].tolist() == [800, 400]
        assert sums["bytes_down_values"].tolist() == [1000, 540]

    def test_no_messages(self):
        assert len(logbook.message_table([], 0.0)) == 0

    @pytest.mark.parametrize("mode", list(MaskMode))
    def test_every_mask_mode_has_a_name_in_the_schema(self, mode):
        (row,) = logbook.message_table([message(Direction.UP, mode=mode)], 0.0)
        assert row["mask_mode"].decode() in MASK_MODES

    def test_every_direction_has_a_name_in_the_schema(self):
        assert {name.decode() for name in logbook.DIRECTION_NAMES.values()} == set(DIRECTIONS)
        assert set(logbook.DIRECTION_NAMES) == set(Direction)


def test_decisions_have_the_codes_of_the_schema():
    assert {d.name: int(d) for d in Decision} == {d.name: int(d) for d in CrrDecision}


class TestTotals:
    def test_sums_by_hand(self):
        totals = Totals()
        this = totals.add(MESSAGES)
        assert totals.up == this.up == 800 + 400 + 3 * REST  # two updates and a request
        assert totals.down == 1000 + 500 + 40 + 3 * REST  # two models and recovered values
        assert totals.dense == 2 * 2000 + 2 * 2100
        assert totals.evaluation == 4000 + REST
        assert totals.saved == pytest.approx(1 - (1200 + 1540 + 6 * REST) / 8200)
        assert totals.client_bytes == {0: 1800 + 3 * REST, 1: 940 + 3 * REST}
        assert totals.client_dense == {0: 4100, 1: 4100}

    def test_adds_rounds_and_returns_each_alone(self):
        totals = Totals()
        totals.add(MESSAGES)
        assert totals.add(MESSAGES[:1]).down == 1000 + REST
        assert totals.down == 2540 + 4 * REST

    def test_nothing_sent_nothing_saved(self):
        assert Totals().saved == 0.0


class TestVariables:
    RESULT = SimpleNamespace(
        clients={
            "density": np.array([1.0, 0.5, 0.25]),
            "clusters": np.array([3.0, np.nan, 5.0]),
            "crr_decision": np.array([1.0, np.nan, 3.0]),
            "map": np.array([0.5, np.nan, 0.25]),
            "not_in_the_file": np.zeros(3),
            "global_map": np.array([0.25, np.nan, 0.75]),
            "global_rank1": np.array([np.nan] * 3),
        },
        selection=SimpleNamespace(
            weights=Weights(np.array([0.25, 0.75]), np.array([0.5, 0.5]), np.array([0.1, 0.9]), uniform=True),
            merged=[0, 2],
            skipped={1: "its norm is nan"},
        ),
        participants=(0, 1),
        seconds={"round": 9.0, "uplink": 2.0},
        started=77.0,
        control=160,
        messages=[
            message(Direction.DOWN),
            message(Direction.UP),
            message(Direction.EVALUATE),
            message(Direction.UP, client=2),
        ],
    )

    def test_of_clients(self):
        got = logbook.client_variables(self.RESULT, list(variables("clients")))
        assert "not_in_the_file" not in got
        assert got["weight"].tolist() == [0.1, 0.0, 0.9]
        assert got["klaw"].tolist() == [0.25, 0.0, 0.75]
        assert got["skipped"].tolist() == [0, 1, 0]
        assert got["participated"].tolist() == [1, 1, 0]
        assert got["clusters"].tolist() == [3, -1, 5]
        assert got["crr_decision"].tolist() == [1, 0, 3]
        assert got["clusters"].dtype.kind == "i"
        assert got["seconds_transfer"].tolist() == [1.0, 0.0, 0.5]  # measuring is no part of the method
        np.testing.assert_array_equal(got["map"], [0.5, np.nan, 0.25])

    def test_of_the_round(self):
        got = logbook.round_variables(self.RESULT)
        assert (got["started"], got["seconds"], got["seconds_uplink"]) == (77.0, 9.0, 2.0)
        assert (got["bytes_control"], got["uniform_weights"], got["global_map"]) == (160, 1, 0.5)
        assert math.isnan(got["global_rank1"])
        assert set(got) <= set(variables("rounds"))

    def test_of_layers(self):
        layout = Layout(names=("a", "b"), shapes=((10, 10), (28,)))
        kept = np.ones(128, bool)
        kept[:25] = False
        masks = {1: Mask.full(128), 0: Mask.from_bool(kept)}
        got = logbook.layer_variables(layout, masks, (0, 1))
        assert got["density"].tolist() == [[0.75, 1.0], [1.0, 1.0]]
        assert got["bytes_values"].tolist() == [[300, 112], [400, 112]]
        assert logbook.layer_variables(layout, masks, (1,))["bytes_values"].tolist() == [[0, 0], [400, 112]]


class TestSummary:
    def test_by_hand(self):
        totals = Totals()
        totals.add(MESSAGES)
        before = {"map": np.array([0.1, 0.3]), "rank1": np.array([0.0, 0.5])}
        last = {
            "map": np.array([0.5, 0.7]),
            "rank1": np.array([1.0, np.nan]),
            "density": np.array([0.5, 0.6]),
            "global_map": np.array([np.nan, np.nan]),
            "global_rank1": np.array([0.25, 0.75]),
        }
        got = logbook.summary(("x", "y"), before, last, totals, {"seconds": 3.0, "rounds": np.int64(4)})
        assert got["map_before"] == pytest.approx(0.2)
        assert got["map_after"] == pytest.approx(0.6)
        assert (got["rank1_before"], got["rank1_after"], got["density"]) == (0.25, 1.0, pytest.approx(0.55))
        assert (got["global_map_after"], got["global_rank1_after"]) == (None, 0.5)
        assert (got["bytes_up"], got["bytes_down"], got["seconds"], got["rounds"]) == (totals.up, totals.down, 3.0, 4)
        assert got["clients"]["y"]["rank1_after"] is None
        assert got["clients"]["y"]["bytes"] == totals.client_bytes[1]
        assert got["clients"]["y"]["saved"] == pytest.approx(1 - totals.client_bytes[1] / 4100)
        json.dumps(got, allow_nan=False)


def test_mean_of_what_was_measured():
    assert logbook.mean(np.array([1.0, np.nan, 3.0])) == 2.0
    assert math.isnan(logbook.mean(np.array([np.nan])))


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert logbook.sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
