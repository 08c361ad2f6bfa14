import shutil
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "analysis"

pytest.importorskip("matplotlib", reason="matplotlib (extra `analysis`) is not installed")
pytest.importorskip("yaml")
sys.path.insert(0, str(SCRIPTS))  # a script finds its helpers beside itself, as when it is started


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A finished run of three rounds and two clients, whose sums tests know by hand; not to be altered."""
    from tests.analysis import sample

    return sample.write(tmp_path_factory.mktemp("written") / "run.h5")


@pytest.fixture
def run_file(written, tmp_path):
    """The path of a copy of it, in a run folder of its own."""
    (tmp_path / "one").mkdir()
    return Path(shutil.copy(written, tmp_path / "one"))


@pytest.fixture(scope="session", autouse=True)
def _small_pictures():
    """Draw with few pixels, which is fast."""
    import _style  # noqa: F401 - sets the style that this changes
    import matplotlib as mpl

    with mpl.rc_context({"savefig.dpi": 40}):
        yield


@pytest.fixture
def invoke():
    """Run a script's command in this process; fails on an unexpected end."""
    from click.testing import CliRunner

    def call(command, *arguments, code=0):
        result = CliRunner().invoke(command, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.output

    return call
