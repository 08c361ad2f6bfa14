"""Downlink, uplink with merge, and measurements under real mpirun, on 1, 2, 3 and 5 ranks."""

from functools import cache
from pathlib import Path

import pytest

from tests import mpi

pytestmark = [pytest.mark.mpi, mpi.needs_mpirun]
SCRIPT = Path(__file__).with_name("collectives.py")


@cache
def digest(ranks: int) -> str:
    """Run all checks on so many ranks; return the digest of everything that was merged."""
    job = mpi.succeed(ranks, [SCRIPT])
    lines = [line for line in job.out.splitlines() if line.startswith("digest ")]
    assert len(lines) == 1, str(job)
    return lines[0]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_against_dense_float64_and_bits_do_not_depend_on_the_number_of_ranks(ranks: int):
    assert digest(ranks) == digest(1)
