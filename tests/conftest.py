"""Fixtures of the whole suite."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedmpi.config import RunConfig


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """Return a function from ``section.key=value`` texts to the tiny run with these changes."""
    from tests import tiny

    return tiny.reader(tmp_path)


@pytest.fixture
def tiny_net(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train the tiny network instead of a ResNet, on one thread."""
    import torch

    from fedmpi.federated import learner
    from tests import tiny

    monkeypatch.setattr(learner, "initial_model", tiny.tiny_model)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
