import _quantities as quantities
import numpy as np
import pytest

from fedmpi.record import open_run
from tests.analysis import sample


@pytest.fixture
def run(run_file):
    with open_run(run_file) as opened:
        yield opened


def test_bytes_by_way_and_section(run):
    assert (quantities.sent(run, "up") == sample.UP).all()
    assert (quantities.sent(run, "down") == sample.DOWN).all()
    assert quantities.sent(run).sum() == 21752 + 23408
    assert quantities.section_bytes(run, "up")["mask"].sum() == 200
    assert quantities.section_bytes(run, "down")["buffers"].sum() == 240


def test_dense_and_saved(run):
    assert quantities.dense(run, "up").sum() == 25152
    assert quantities.dense(run, "down").sum() == 25008
    assert quantities.saved(run) == pytest.approx(1 - 45160 / 50160)


def test_recovery_is_paid_for(tmp_path):
    with open_run(sample.write(tmp_path / "run.h5", kinds={"recovery": True})) as run:
        assert quantities.sent(run, "up").sum() == 21752 + 6 * 128
        assert quantities.sent(run, "down").sum() == 23408 + 3 * (128 + 400)
        assert quantities.dense(run).sum() == 50160


def test_evaluation_is_not(tmp_path):
    with open_run(sample.write(tmp_path / "run.h5", kinds={"evaluation": True})) as run:
        assert quantities.sent(run).sum() == 45160


def test_parameters(run):
    assert quantities.parameters(run) == 1000


def test_the_fields_definitions(run):
    counted = {d.name: d.bytes for d in quantities.definitions(run)}
    assert counted["FedReID"] == 3 * 2 * 2 * 4000  # rounds, clients, up and down, model
    assert counted["EasyFL"] == 12 * 4000  # messages
    assert counted["LotteryFL"] == pytest.approx(48000 * (0.875 + 1 + 0.75 + 0.875 + 0.75 + 0.625) / 6)
    assert counted["fedmpi, dense"] == 50160
    assert counted["fedmpi"] == 45160


def test_paper_scale_definitions(tmp_path):
    """METHOD.md section 8: ResNet-50 with neck, 8 clients, 20 rounds dense, up and down: 30.10 GB."""
    from fedmpi.record import RunWriter, empty_messages

    parameters, names = 23_512_128, [f"client {k}" for k in range(8)]
    with RunWriter.create(tmp_path / "run.h5", names, (), sample.provenance()) as writer:
        for t in range(20):
            table = empty_messages(16)
            table["round"], table["client"] = t, np.arange(16) % 8
            table["direction"] = np.repeat([b"down", b"up"], 8)
            table["values"] = table["bytes"] = table["dense_bytes"] = 4 * parameters
            rows = {"weight": np.full(8, 1 / 8), "density": np.ones(8)}
            writer.commit(t, {"started": 0.0, "seconds": 1.0}, rows, {}, table)
    with open_run(tmp_path / "run.h5") as run:
        assert {round(d.bytes / 1e9, 2) for d in quantities.definitions(run)} == {30.1}


def test_curve_begins_with_the_untrained_model_and_skips_rounds_without_evaluation(run):
    rounds, total, values = quantities.curve(run, "map")
    assert rounds.tolist() == [0, 1, 3]
    assert total.tolist() == [0, 3842 + 4192 + 2 * 4168, 45160]
    assert values.tolist() == [[0.1, 0.2], [0.2, 0.4], [0.5, 0.7]]


def test_means_leave_out_what_was_not_measured():
    nan = np.nan
    assert quantities.mean(np.array([nan, 1.0, 3.0])) == 2.0
    assert np.isnan(quantities.mean(np.array([nan])))
    assert quantities.last_measured(np.array([[1.0, nan], [nan, nan]])).tolist()[0] == 1.0
    assert np.isnan(quantities.last_measured(np.array([[1.0, nan], [nan, nan]]))[1])
