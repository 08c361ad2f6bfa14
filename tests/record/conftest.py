import pytest

from fedmpi.record import RunWriter
from tests.record import sample


@pytest.fixture
def create(tmp_path):
    """Make a writer of a fresh file; ``rounds`` sets the length of its chunks."""

    def make(name="run.h5", **options):
        return RunWriter.create(tmp_path / name, sample.CLIENTS, sample.LAYERS, {"config": "seed: 1\n"}, **options)

    return make


@pytest.fixture
def finished(create):
    """The path of a finished run of four rounds."""
    with create() as writer:
        writer.baseline({"map": [0.1, 0.2, 0.3]})
        sample.write(writer, 4)
    return writer.path
