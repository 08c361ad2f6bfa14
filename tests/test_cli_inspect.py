import json
import os
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner

from fedmpi import cli_inspect
from fedmpi.errors import SchemaError
from tests.analysis import sample


def show(*arguments):
    result = CliRunner().invoke(cli_inspect.inspect, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture
def finished(tmp_path):
    return sample.write(tmp_path / "run.h5", kinds={"evaluation": True})


def line(text, start):
    return next(row for row in text.splitlines() if row.split()[:1] == [start])


def test_the_rounds(finished):
    text = show(finished)
    rows = {
        "1/3": "2.50 0.200 30.0 40.0 0.938 0.0 0.0 2.1% 9 1 accepted, 1 halted",  # 1 - 16370 / 16720
        "2/3": "1.50 0.200 -- -- 0.812 0.0 0.0 5.6% 9 2 accepted",  # 1 - 31580 / 33440
        "3/3": "0.50 0.200 60.0 70.0 0.688 0.0 0.0 10.0% 9 1 accepted, 1 recovered",  # 1 - 45160 / 50160
    }
    for start, rest in rows.items():
        assert line(text, start).split(maxsplit=1)[1].split() == rest.split()
    assert line(text, "--").split() == ["--", "--", "--", "15.0", "15.0", "untrained", "model"]


def test_columns_stand_below_their_heads(finished):
    lines = show(finished).splitlines()
    head = next(row for row in lines if row.startswith("    round"))
    rows = [row for row in lines if "/3 " in row[:10] or "untrained" in row]
    assert len(rows) == 4
    for row in rows:
        for name in ("round", "loss", "KL", "mAP", "rank-1"):
            end = head.index(name) + len(name)
            assert row[end - 1] in "0123456789-"
            assert row[end] == " "
    for row in rows[1:]:
        for name in ("density", "MB up", "MB down", "saved", "sec"):
            end = head.index(name) + len(name)
            assert row[end - 1] in "0123456789%"
            assert row[end] == " "


def test_the_summary(finished):
    text = show(finished)
    assert "state    finished" in text
    assert "2 clients, 3 of 3 rounds, seed 0, config abc" in text
    assert "3 ranks on n0, n1" in text
    assert "45.2 kB (up 21.8 kB, down 23.4 kB) instead of 50.2 kB dense: 10.0 % saved; 25.0 kB more to evaluate" in text
    assert "error" not in text


def test_the_last_error(tmp_path):
    text = show(sample.write(tmp_path / "run.h5", status="failed", error="RankFailure: client 1"))
    assert "state    failed" in text
    assert "error    RankFailure: client 1" in text


def test_a_stopped_run_has_not_failed(tmp_path):
    error = "SIGUSR1 came; 3 of 9 rounds are done; continue with: fedmpi train --resume elsewhere"
    path = sample.write(tmp_path / "run.h5", status="stopped", error=error)
    (tmp_path / "checkpoints").mkdir()
    text = show(path)
    assert "state    stopped\n" in text
    assert "stopped  SIGUSR1 came; 3 of 9 rounds are done\n" in text
    assert f"go on    fedmpi train --resume {tmp_path}\n" in text
    assert "error" not in text


@pytest.mark.parametrize(("status", "kept"), [("finished", True), ("failed", False)])
def test_no_hint_where_nothing_goes_on(tmp_path, status, kept):
    path = sample.write(tmp_path / "run.h5", status=status)
    if kept:
        (tmp_path / "checkpoints").mkdir()
    assert "--resume" not in show(path)


def test_states_have_colours_on_a_terminal(tmp_path, monkeypatch):
    path = sample.write(tmp_path / "run.h5", status="stopped")
    shown = lambda: CliRunner().invoke(cli_inspect.inspect, [str(path)], color=True).output  # noqa: E731
    assert "\x1b[33mstopped\x1b[0m" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown()


def test_the_clients(finished):
    text = show(finished, "--clients")
    cells = ["market", "10.0", "50.0", "10.0", "60.0", "0.750", "0.250", "recovered", "7", "0.0", "12.4", "%", "3.0"]
    assert [row.split() for row in text.splitlines() if row.startswith("  market")] == [cells]
    assert [row.split()[8] for row in text.splitlines() if row.startswith("  prid")] == ["--"]  # clusters: not measured


def test_the_last_rounds_only(finished):
    text = show(finished, "--last", "1")
    assert "... 2 earlier rounds" in text
    assert "2/3 " not in text
    assert line(text, "3/3").split()[8] == "10.0%"  # still since the first round
    assert "1/3 " in show(finished, "--last", "0")


def test_json_holds_what_the_file_holds(finished):
    facts = json.loads(show(finished, "--json"))
    assert facts["status"] == "finished"
    assert facts["rounds"] == facts["rounds_planned"] == 3
    assert facts["per_round"]["bytes_up"] == sample.UP.sum(axis=1).tolist()
    assert facts["per_round"]["mean_map"] == [pytest.approx(0.3), None, pytest.approx(0.6)]
    assert facts["last_round"]["prid"]["density"] == 0.625
    assert facts["last_round"]["prid"]["crr_received"] is None
    assert "config" not in facts["provenance"]


def test_a_job_that_runs(tmp_path):
    path, writer = sample.write(tmp_path / "run.h5", rounds=1, status="running")
    with writer:
        text = show(path)
        assert "state    running; last written 0 s ago; about 18 s to go" in text
        assert "1/3 " in text
        sample.commit(writer, 1)
        assert "2/3 " in show(path)


def test_a_job_that_was_killed(tmp_path):
    path, writer = sample.write(tmp_path / "run.h5", rounds=1, status="running")
    hour = time.time() - 3600
    os.utime(path, (hour, hour))
    assert "last written 60 min ago, while rounds took up to 9 s: probably killed" in show(path)
    writer.close("finished")


def test_before_the_first_round(tmp_path):
    path, writer = sample.write(tmp_path / "run.h5", rounds=0, status="running")
    with writer:
        text = show(path, "--clients")
        assert "0 of 3 rounds" in text
        assert "untrained model" in text
        assert json.loads(show(path, "--json"))["last_round"] == {}


def test_resumes_are_named(tmp_path):
    from fedmpi.record import RunWriter

    path = sample.write(tmp_path / "run.h5", status="failed")
    RunWriter.reopen(path, 2, sample.provenance()).close("finished")
    assert "resumed  after round 2" in show(path)


def test_what_went_wrong_in_a_round(tmp_path):
    path, writer = sample.write(tmp_path / "run.h5", rounds=0, status="running")
    with writer:
        rows = sample.clients(0) | {"skipped": np.array([0, 1])}
        writer.commit(0, sample.scalars(0) | {"uniform_weights": 1}, rows, sample.layers(0), sample.messages(0))
    assert line(show(path), "1/3").endswith("1 accepted, 1 halted, 1 refused, uniform weights")


def test_follow_shows_rounds_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_inspect, "POLL_SECONDS", 0.05)
    path, writer = sample.write(tmp_path / "run.h5", rounds=1, status="running")
    again = threading.Event()

    def go_on():
        again.wait(20)
        for t in (1, 2):
            sample.commit(writer, t)
        writer.close("failed", "out of memory")

    thread = threading.Thread(target=go_on)
    thread.start()
    threading.Timer(0.3, again.set).start()
    text = show(path, "--follow")
    thread.join()
    assert [row.split()[0] for row in text.splitlines() if "/3 " in row[:10]] == ["1/3", "2/3", "3/3"]
    assert "earlier" not in text
    assert text.rstrip().splitlines()[-2].strip() == "error    out of memory"


def test_follow_and_json_exclude_one_another(finished):
    assert "exclude one another" in show(finished, "--json", "--follow")


def test_no_run(tmp_path):
    with pytest.raises(SchemaError, match="no such run file"):
        show(tmp_path)


@pytest.mark.parametrize(
    ("config", "rounds"),
    [
        ("federation: {rounds: 7}", 7),
        ("", 0),
        ("- 1", 0),
        ("federation: 3", 0),
        ("federation: {rounds: x}", 0),
        (": [", 0),
    ],
)
def test_planned_rounds_of_any_configuration(tmp_path, config, rounds):
    from fedmpi.record import open_run

    with open_run(sample.write(tmp_path / "run.h5", rounds=0, config=config)) as run:
        assert cli_inspect.planned(run) == rounds
