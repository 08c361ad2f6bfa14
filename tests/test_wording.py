import math

import pytest

from fedmpi import wording


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (94_048_512, "94.0 MB"), (30.1e9, "30.10 GB"),
        (2.5e12, "2.50 TB"), (3e15, "3000.00 TB"), (-1500, "-1.5 kB"),
    ],
)  # fmt: skip
def test_size(count, text):
    assert wording.size(count) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "50.0"), (1, "100.0"), (-1e-9, "0.0"), (-0.01, "-1.0"), (math.nan, "--")]
)
def test_percent(share, text):
    assert wording.percent(share) == text


def test_number():
    assert wording.number(1.25, 1) == "1.2"
    assert wording.number(math.nan, 3) == "--"


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (119, "119 s"), (180, "3 min"), (7200, "2 h"), (200_000, "2 days")]
)
def test_span(seconds, text):
    assert wording.span(seconds) == text
