import pytest

from tests.slurm import cluster as private
from tests.slurm import trainings


@pytest.fixture(scope="session")
def private_slurm(tmp_path_factory):
    """A real SLURM of three fake nodes, for all tests of this folder."""
    reason = private.reason_to_skip()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents)[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)  # munge trusts no folder that others may not enter
    with private.running(folder) as up:
        yield up


@pytest.fixture
def cluster(private_slurm):
    """The real SLURM, with no job of an earlier test."""
    yield private_slurm
    private_slurm.clear()


@pytest.fixture
def site(tmp_path):
    """A working directory as the scripts of jobs/ expect it: .venv/bin/activate puts `bin` before all else."""
    (tmp_path / "bin").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"export PATH={tmp_path}/bin:$PATH\n")
    return tmp_path


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """Return the checksums of the uninterrupted run of two clients."""
    site = tmp_path_factory.mktemp("two")
    trainings.tiny(site, *trainings.TWO)
    return trainings.uninterrupted(site)
