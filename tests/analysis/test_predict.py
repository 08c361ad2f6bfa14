import csv

import _links as links
import click
import numpy as np
import predict
import pytest
from _links import PRESETS, Link, LinkType
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.record import open_run
from tests.analysis import sample

LAN = Link("lan", 8e6, 8e6, 0.0, 8e6)  # a megabyte a second everywhere, no latency


def bytes_of(*clients):
    return np.array([clients], np.int64)


@pytest.mark.parametrize(
    ("link", "way", "sent", "seconds"),
    [
        (LAN, "up", bytes_of(10**6, 10**6, 10**6), 3.0),  # all through the server's port
        (LAN, "down", bytes_of(10**6, 0, 0), 1.0),
        (Link("", 8e6, 8e6, 0.0, 80e6), "up", bytes_of(10**6, 3 * 10**6), 3.0),  # the slowest client
        (Link("", 16e6, 4e6, 0.0, 80e6), "up", bytes_of(10**6), 2.0),  # each way has its own bandwidth
        (Link("", 16e6, 4e6, 0.0, 80e6), "down", bytes_of(10**6), 0.5),
        (LAN, "up", bytes_of(0, 0), 0.0),
    ],
)
def test_bandwidth_alone(link, way, sent, seconds):
    assert links.seconds(link, way, sent, 4) == pytest.approx([seconds])


def test_latency_alone():
    line = Link("", 1e15, 1e15, 0.5, 1e15)
    assert links.seconds(line, "up", bytes_of(10), 0) == pytest.approx([0.5])
    assert links.seconds(line, "up", bytes_of(10), 6) == pytest.approx([4 * 0.5 + 6 * 0.5])


def test_clients_of_one_rank_share_a_port_and_the_servers_own_need_none():
    wide = Link("", 8e6, 8e6, 0.0, 800e6)
    sent = bytes_of(10**6, 10**6, 10**6, 10**6)
    assert links.seconds(wide, "up", sent, 1, [1, 2, 3, 4]) == pytest.approx([1.0])
    assert links.seconds(wide, "up", sent, 1, [1, 1, 1, 2]) == pytest.approx([3.0])
    assert links.seconds(wide, "up", sent, 1, [0, 0, 0, 1]) == pytest.approx([1.0])
    assert links.seconds(wide, "up", sent, 1, [0, 0, 0, 0]) == pytest.approx([0.0])


def simulated(latency, piece, ranges):
    """Event by event: the receiver asks for a range when the last but one is in; the line carries one at a time."""
    done, free = [], 0.0
    for s in range(ranges):
        asked = done[s - 2] if s >= 2 else 0.0
        begin = max(asked + latency, free)
        free = begin + piece
        done.append(free + latency)
    return done[-1]


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 0.3), st.floats(1e-4, 0.5), st.integers(1, 60))
def test_against_a_simulation_of_every_range(latency, piece, ranges):
    """The closed form is within a few latencies of the simulation, whatever the sizes and the number of ranges."""
    rate = 1e9
    sent = np.array([[round(piece * ranges * rate / 8)]])
    predicted = float(links.seconds(Link("", rate, rate, latency, rate), "up", sent, ranges)[0])
    assert abs(predicted - (latency + simulated(latency, piece, ranges))) <= 4 * latency + piece + 1e-6


def test_the_fluid_limit_for_many_ranges():
    """With many ranges and no latency, unequal clients in lockstep take what the busier side needs."""
    sent = bytes_of(1 * 10**6, 10 * 10**6)
    fast_server = Link("", 8e6, 8e6, 0.0, 12e6)
    assert links.seconds(fast_server, "up", sent, 1000) == pytest.approx([10.0], rel=1e-3)


@pytest.fixture
def run(run_file):
    with open_run(run_file) as opened:
        yield opened


def test_replay_reads_what_moved(run):
    replayed = predict.replay(run)
    assert (replayed.bytes["up"] == sample.UP).all()
    assert (replayed.bytes["down"] == sample.DOWN).all()
    assert (replayed.dense["up"] == 4192).all()
    assert replayed.local.tolist() == [5.5] * 3  # the second client: 5.0 training, 0.5 clustering
    assert predict.replay(run, 0.1).local == pytest.approx([0.55] * 3)
    assert replayed.segments == 1


def test_ranges_follow_the_configuration(tmp_path):
    config = sample.CONFIG.format(name="x", seed=0, lr=1, probe="loss").replace("segment_mb: 1.0", "segment_mb: 0.001")
    with open_run(sample.write(tmp_path / "run.h5", config=config)) as run:
        assert predict.replay(run).segments == 4  # 4000 bytes in ranges of 1048.576


def test_forecast_by_hand(run):
    """At 8 kbit/s through the server: 1000 bytes a second, so seconds are kilobytes."""
    slow = Link("slow", 8e3, 8e3, 0.0, 8e3)
    f = predict.forecast(predict.replay(run), slow)
    assert f.sparse["down"] == pytest.approx([8.336, 7.936, 7.136])
    assert f.sparse["up"] == pytest.approx([8.034, 7.274, 6.444])
    assert f.dense["up"] == pytest.approx([8.384] * 3)
    assert f.moving(f.dense) == pytest.approx(50.160)
    moving, whole = predict.speed_ups(f)
    assert moving == pytest.approx(50160 / 45160)
    assert whole == pytest.approx((50.160 + 16.5) / (45.160 + 16.5))


def test_merging_bounds_the_uplink_from_below(run):
    fast = Link("fast", 1e15, 1e15, 0.0, 1e15)
    f = predict.forecast(predict.replay(run), fast)
    assert f.sparse["up"] == pytest.approx([0.25] * 3)
    assert f.dense["up"] == pytest.approx([0.25 * 8384 / sample.UP[t].sum() for t in range(3)])


def test_recovery_costs_time_and_dense_has_none(tmp_path):
    slow = Link("slow", 8e3, 8e3, 0.0, 8e3)
    with open_run(sample.write(tmp_path / "run.h5", kinds={"recovery": True})) as run:
        f = predict.forecast(predict.replay(run), slow)
    assert f.sparse["down"] == pytest.approx([8.336 + 0.256 + 0.528, 7.936 + 0.784, 7.136 + 0.784])
    assert f.dense["down"] == pytest.approx([8.336] * 3)


def test_check_sets_prediction_against_measurement(tmp_path, invoke):
    path = sample.write(tmp_path / "run.h5", kinds={"evaluation": True})
    link = "x=80kbit/80kbit/0ms/80kbit"  # 10 000 bytes a second
    text = invoke(predict.main, path, "--check", link, "--link", "4g", "--out", tmp_path, "--format", "csv")
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert rows["down"] == ["down", "23.4", "kB", "2.34", "s", "1.5", "s", "+56.1", "%"]
    assert rows["up"] == ["up", "21.8", "kB", "2.18", "s", "2.25", "s", "-3.3", "%"]  # less the wait
    assert rows["eval"] == ["eval", "25.0", "kB", "2.5", "s", "0.75", "s", "+233.4", "%"]
    assert rows["all"] == ["all", "7.02", "s", "4.5", "s", "+55.9", "%"]


def test_measured_bandwidth(run_file, tmp_path, invoke):
    text = invoke(predict.main, run_file, "--out", tmp_path, "--format", "csv")
    assert "down 125 kbit/s (23.4 kB in 1.5 s), up 77.3 kbit/s (21.8 kB in 2.25 s)" in text


def test_a_run_in_one_process_has_nothing_to_check(tmp_path, invoke):
    path = sample.write(tmp_path / "run.h5", client_ranks=["0", "0"])
    assert "no transfer between ranks" in invoke(predict.main, path, "--format", "csv")
    assert "nothing to check" in invoke(predict.main, path, "--check", "1gbe", "--format", "csv")


def test_table(run_file, tmp_path, invoke):
    slow = "slow=8kbit/8kbit/0s/8kbit"
    invoke(predict.main, run_file, "--link", slow, "--out", tmp_path, "--format", "csv")
    with (tmp_path / "predict.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [r["link"] for r in table] == ["slow"] * 3
    assert [float(r["up_s"]) for r in table] == pytest.approx([8.034, 7.274, 6.444])
    assert [float(r["local_s"]) for r in table] == [5.5] * 3


def test_slower_links_take_longer(run):
    replayed = predict.replay(run)
    forecasts = [predict.forecast(replayed, PRESETS[name]) for name in ("infiniband", "10gbe", "1gbe", "fibre", "4g")]
    moving = [f.moving(f.sparse) for f in forecasts]
    assert moving == sorted(moving)


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("lab=100Mbit/20Mbit/5ms/1Gbit", Link("lab", 100e6, 20e6, 5e-3, 1e9)),
        ("x=1.5gbit/500kbit/2us/2Tbit", Link("x", 1.5e9, 500e3, 2e-6, 2e12)),
        ("x=8bit/8bit/0s/8bit/s", None),
        ("1gbe", PRESETS["1gbe"]),
    ],
)
def test_links_are_read(text, link):
    if link is None:
        with pytest.raises(click.BadParameter):
            LinkType().convert(text, None, None)
    else:
        assert LinkType().convert(text, None, None) == link


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("5gg", "no link '5gg'; there are infiniband"),
        ("x=1Mbit/1Mbit/1ms", "is not NAME=DOWN/UP/LATENCY/SERVER"),
        ("=1Mbit/1Mbit/1ms/1Mbit", "is not NAME=DOWN/UP/LATENCY/SERVER"),
        ("x=1Mbit/fast/1ms/1Mbit", "'fast' is not a bandwidth such as 20Mbit"),
        ("x=1Mbit/1Mbit/1/1Mbit", "'1' is not a latency such as 5ms"),
        ("x=1Mbit/0bit/1ms/1Mbit", "a bandwidth must be more than 0"),
    ],
)
def test_wrong_links_say_what_is_right(text, word):
    with pytest.raises(click.BadParameter) as caught:
        LinkType().convert(text, None, None)
    assert word in caught.value.format_message()
