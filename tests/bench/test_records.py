import json

import pytest

from fedmpi.bench import records, timing
from fedmpi.bench.records import Record
from fedmpi.errors import ConfigError


def test_columns_are_aligned():
    lines = records.table([("what", "by", "MB"), ("a", "longer", "1.0"), ("bbbb", "x", "100.0")], texts=2)
    assert lines == [
        "  what  by         MB",
        "  a     longer    1.0",
        "  bbbb  x       100.0",
    ]


def test_json_has_the_eight_keys(tmp_path):
    path = tmp_path / "new.json"
    records.write_json([Record("codec", "x", 0.5, "write", "raw", None, 3, 0.25)], path)
    assert json.loads(path.read_text()) == [
        {
            "bench": "codec", "name": "x", "density": 0.5, "plan": "write", "coding": "raw", "seconds": None,
            "bytes": 3, "ratio_to_dense": 0.25,
        }
    ]  # fmt: skip


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "old.json"
    path.write_text("precious")
    for action in (records.check_free, lambda p: records.write_json([], p)):
        with pytest.raises(ConfigError, match=r"old\.json"):
            action(path)
    assert path.read_text() == "precious"
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        records.check_free(tmp_path / "nowhere" / "x.json")
    records.check_free(None)


def test_variants_take_turns_and_the_first_does_not_count():
    calls, now = [], [0.0]

    def variant(name, seconds):
        def run():
            calls.append(name)
            now[0] += seconds * (100 if len(calls) <= 2 else 1)  # a slow start

        return run

    times = timing.interleaved({"a": variant("a", 1), "b": variant("b", 2)}, 3, lambda: now[0])
    assert calls == ["a", "b"] * 4
    assert times == {"a": [1, 1, 1], "b": [2, 2, 2]}


def test_the_ratio_is_taken_within_a_turn():
    """A machine that is ten times slower in one turn changes nothing."""
    assert timing.ratio([1, 20, 3], [2, 40, 6]) == 0.5
    assert timing.middle([1, 20, 3]) == 3
