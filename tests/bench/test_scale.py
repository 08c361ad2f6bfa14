"""The table of ``bench scale``; the run itself is in test_commands.py."""

from fedmpi.bench import scale
from fedmpi.bench.records import Record

COUNTS = (8, 16, 32)


def cells(seconds, counts=COUNTS):
    measured = dict(zip(counts, seconds, strict=True))
    records = [Record("scale", name, 0.5, "p", "raw", measured[n], n, 1.0) for name in scale.NAMES for n in counts]
    return [row[3 + len(counts) :] for row in scale.rows(records)]


def test_the_model_is_the_straight_line_through_what_was_measured():
    heads, cpu, wall = cells([0.009, 0.017, 0.033])  # a millisecond, and one for each client
    assert heads == ("model: 128", "model: 256", "model: 512")
    assert cpu == wall == ("129.00 ms", "257.00 ms", "513.00 ms")


def test_there_is_no_model_of_costs_that_fall():
    assert cells([0.03, 0.02, 0.01])[1] == ("--", "--", "--")


def test_two_numbers_of_clients_make_no_model():
    assert cells([0.01, 0.02], COUNTS[:2]) == [(), (), ()]
