import csv

import accuracy
import numpy as np
import pytest
from _common import Named

from fedmpi.record import open_run
from tests.analysis import sample


@pytest.fixture
def seeds(tmp_path):
    """Two runs that differ in their seed and by 0.1 in every score."""
    return [sample.write(tmp_path / f"s{seed}" / "run.h5", seed=seed, shift=0.1 * seed) for seed in (0, 1)]


def test_table(run_file, tmp_path, invoke):
    invoke(accuracy.main, run_file, "--out", tmp_path, "--format", "csv")
    with (tmp_path / "accuracy.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(r["rounds_finished"], r["client"]) for r in table] == [(t, c) for t in "013" for c in sample.CLIENTS]
    assert [float(r["map"]) for r in table] == [0.1, 0.2, 0.2, 0.4, 0.5, 0.7]
    assert [int(r["total_bytes"]) for r in table[::2]] == [0, 16370, 45160]
    assert [int(r["client_bytes"]) for r in table] == [0, 0, 3842 + 4168, 4192 + 4168, 21970, 23190]


def test_what_is_printed(run_file, tmp_path, invoke):
    text = invoke(accuracy.main, run_file, "--out", tmp_path, "--format", "csv")
    line = next(line.split() for line in text.splitlines() if line.startswith("one "))
    assert line == ["one", "0", "3", "45.2", "kB", "15.0", "15.0", "60.0", "70.0"]


def test_marks_are_where_runs_were_evaluated(seeds):
    with open_run(seeds[0]) as one, open_run(seeds[1]) as two:
        x, y = accuracy.evaluations([Named("one", one), Named("one", two)], "map")
    assert x == pytest.approx([0, 16_370, 45_160])
    assert y == pytest.approx([0.15, 0.35, 0.65])


def test_a_label_names_all_runs_of_a_pattern(seeds, tmp_path, invoke):
    text = invoke(accuracy.main, f"both={tmp_path}/s?", "--out", tmp_path, "--format", "csv")
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("both ")] == [
        ["both", "0"],
        ["both", "1"],
    ]
    assert "t?: no such run file" in invoke(accuracy.main, f"both={tmp_path}/t?", code=2)


def test_the_untrained_score_is_not_the_last_one(tmp_path, invoke):
    nan = {name: [np.nan, np.nan] for name in ("map", "rank1", "rank5", "rank10")}
    path = sample.write(tmp_path / "run.h5", rounds=2, status="stopped", changes=nan)
    text = invoke(accuracy.main, path, "--out", tmp_path, "--format", "csv")
    line = next(line.split() for line in text.splitlines() if line.startswith("one "))
    assert line[5:] == ["15.0", "15.0", "--", "--"]


def test_mean_over_clients_against_bytes(run_file):
    with open_run(run_file) as run:
        made = accuracy.groups_over({"one": [Named("one", run)]}, ["map"], "bytes")
    _, line, marks = made.axes[0].lines  # the first is the legend's
    assert marks.get_xdata() == pytest.approx(line.get_xdata())
    assert line.get_xdata() == pytest.approx([0, 16.370, 45.160])
    assert line.get_ydata() == pytest.approx([15, 30, 60])
    assert made.axes[0].get_xlabel() == "sent by all clients, up and down (kB)"


def test_seeds_are_one_line_with_their_range(seeds):
    with open_run(seeds[0]) as a, open_run(seeds[1]) as b:
        x, low, middle, high = accuracy.spread([Named("one", a), Named("one", b)], "map", "rounds")
    assert x.tolist() == [0, 1, 3]
    assert low == pytest.approx([0.15, 0.3, 0.6])
    assert middle == pytest.approx([0.15, 0.35, 0.65])
    assert high == pytest.approx([0.15, 0.4, 0.7])


def test_over_bytes_seeds_are_compared_up_to_the_smaller_total(tmp_path):
    paths = [sample.write(tmp_path / "a.h5"), sample.write(tmp_path / "b.h5", kinds={"recovery": True})]
    with open_run(paths[0]) as a, open_run(paths[1]) as b:
        x, low, middle, high = accuracy.spread([Named("one", a), Named("one", b)], "map", "bytes")
    assert x[-1] == 45160
    assert middle[-1] == pytest.approx((0.6 + np.interp(45160, [16370 + 784, 45160 + 2352], [0.3, 0.6])) / 2)
    assert (low <= middle).all()
    assert (middle <= high).all()


def test_every_client_over_its_own_bytes(run_file):
    with open_run(run_file) as run:
        made = accuracy.clients_over(run, ["map"], "bytes")
    lines = {line.get_label(): line for line in made.axes[0].lines}
    assert lines["prid"].get_xdata() == pytest.approx([0, 8.360, 23.190])
    assert lines["prid"].get_ydata() == pytest.approx([20, 40, 70])


def test_clients_of_several_runs_are_refused(seeds, tmp_path, invoke):
    text = invoke(accuracy.main, *seeds, "--clients", "--out", tmp_path, code=2)
    assert "--clients draws one run" in text
