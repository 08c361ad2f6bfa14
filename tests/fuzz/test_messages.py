"""The fuzz target over its seeds and blind changes of them; coverage-guided for some seconds where atheris is."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpi.sparse import MaskMode
from tests.fuzz import messages
from tests.fuzz.corpus import SECTION, VALUES, seeds

ROOT = Path(__file__).parents[2]
SEEDS = list(seeds())


def test_the_seeds_decode():
    """A seed that is refused would lead nowhere."""
    for seed in SEEDS:
        messages.one_input(seed)
    modes = {seed[1] for seed in SEEDS if seed[0] == SECTION}
    assert modes == {int(mode) for mode in MaskMode if mode != MaskMode.ABSENT}


def test_changed_seeds_are_refused_or_decode():
    rng = random.Random(4)
    for seed in SEEDS:
        for _ in range(20):
            data = bytearray(seed)
            for _ in range(rng.randint(1, 3)):
                place = rng.randint(1, len(data))
                data[place : place + rng.choice([0, 1, 1, 1, 5])] = rng.randbytes(rng.choice([0, 1, 1, 1, 5]))
            messages.one_input(bytes(data))


def test_the_bound_is_no_decoration(monkeypatch):
    monkeypatch.setattr(messages, "BOUND", 100)
    with pytest.raises(AssertionError, match="bytes of memory"):
        messages.one_input(next(seed for seed in SEEDS if seed[0] == VALUES and len(seed) > 2000))


def test_atheris_for_some_seconds(tmp_path):
    pytest.importorskip("atheris", reason="coverage-guided fuzzing needs atheris: pip install atheris")
    for words in (["tests.fuzz.corpus"], ["tests.fuzz.messages", "-max_len=8192", "-max_total_time=5", "-seed=1"]):
        argv = [sys.executable, "-m", words[0], str(tmp_path / "corpus"), *words[1:]]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
