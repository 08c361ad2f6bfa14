import csv

import pytest
import traffic

from fedmpi.record import open_run
from tests.analysis import sample


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_table_holds_every_message_of_every_round_and_client(run_file, tmp_path, invoke):
    invoke(traffic.main, run_file, "--out", tmp_path, "--format", "csv")
    table = rows(tmp_path / "traffic.csv")
    assert [(r["round"], r["client"]) for r in table] == [(str(t), c) for t in range(3) for c in sample.CLIENTS]
    assert [int(r["up_total_bytes"]) for r in table] == sample.UP.ravel().tolist()
    assert [int(r["down_total_bytes"]) for r in table] == sample.DOWN.ravel().tolist()
    assert [int(r["up_mask_bytes"]) for r in table] == sample.MASK.ravel().tolist()
    assert [int(r["up_dense_bytes"]) for r in table] == [4192] * 6
    assert [float(r["density"]) for r in table] == sample.DENSITY.ravel().tolist()


def test_definitions_table(run_file, tmp_path, invoke):
    invoke(traffic.main, run_file, "--out", tmp_path, "--format", "csv")
    table = {
        r["definition"]: (int(r["bytes"]), float(r["ratio_to_fedreid"]))
        for r in rows(tmp_path / "traffic_definitions.csv")
    }
    assert table["FedReID"] == (48000, 1.0)
    assert table["LotteryFL"] == (39000, pytest.approx(0.8125))
    assert table["fedmpi"] == (45160, pytest.approx(45160 / 48000))


def test_layers_table(run_file, tmp_path, invoke):
    invoke(traffic.main, run_file, "--out", tmp_path, "--format", "csv")
    table = rows(tmp_path / "traffic_layers.csv")
    conv = [r for r in table if r["layer"] == "net.conv.weight"]
    assert [int(r["uplink_values_bytes"]) for r in conv] == [4 * (700 + 800), 4 * (600 + 700), 4 * (600 + 500)]
    assert [float(r["mean_density"]) for r in conv] == [0.9375, 0.8125, 0.6875]
    assert {float(r["mean_density"]) for r in table if r["layer"] == "net.bn.weight"} == {1.0}


def test_what_is_printed(run_file, tmp_path, invoke):
    text = invoke(traffic.main, run_file, "--out", tmp_path, "--format", "csv")
    assert "10.0 % saved against dense" in text  # 1 - 45160 / 50160 = 0.09968
    up = next(line.split() for line in text.splitlines() if line.startswith("uplink"))
    assert up == ["uplink", "20.4", "kB", "200", "B", "240", "B", "144", "B", "768", "B", "21.8", "kB", "25.2", "kB"]
    assert "300 bytes of control" in text


def test_bars_of_a_round_add_up(run_file):
    """The stacked bars of round 0 reach what was sent in it, in kilobytes."""
    with open_run(run_file) as run:
        made = traffic.by_round(run)
    for axis, total in zip(made.axes, ((3842 + 4192), (2 * 4168)), strict=True):
        tops = [bar.get_y() + bar.get_height() for bars in axis.containers for bar in bars[:1]]
        assert max(tops) == pytest.approx(total / 1000)


def test_cumulative_ends_at_the_totals(run_file):
    with open_run(run_file) as run:
        lines = {line.get_label(): line.get_ydata()[-1] for line in traffic.cumulative(run).axes[0].lines}
    assert lines["dense equivalent"] == pytest.approx(50.160)
    assert lines["sent, up and down"] == pytest.approx(45.160)
    assert lines["sent, uplink"] == pytest.approx(21.752)


def test_heat_map_shows_one_client_or_the_mean(run_file):
    with open_run(run_file) as run:
        mean = traffic.by_layer(run).axes[0].images[0].get_array()
        prid = traffic.by_layer(run, 1).axes[0].images[0].get_array()
    assert mean.tolist() == [[0.9375, 0.8125, 0.6875]]  # the layer that was never pruned is left out
    assert prid.tolist() == [[1.0, 0.875, 0.625]]


def test_an_unknown_client_gets_the_list(run_file, tmp_path, invoke):
    text = invoke(traffic.main, run_file, "--out", tmp_path, "--client", "duke", code=2)
    assert "no client 'duke'; there are market, prid" in text


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["net.conv.weight", "net.bn.weight"], ["conv", "bn"]),
        (["net.conv.weight"], ["conv"]),
        (["conv1.weight", "conv10.weight"], ["conv1", "conv10"]),
        (["fc", "net.fc"], ["fc", "net.fc"]),
    ],
)
def test_short_names_stay_different(names, short):
    assert traffic.short_names(names) == short
