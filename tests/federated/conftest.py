"""Worlds of one process, freed afterwards."""

import pytest

from tests.tiny import one_process


@pytest.fixture
def world(tiny_config):
    """Return a function that builds the tiny federation in this process."""
    made = []

    def make(*overrides: str):
        built = one_process(tiny_config(*overrides))
        made.append(built)
        return built

    yield make
    for built in made:
        built.ranks.free()
