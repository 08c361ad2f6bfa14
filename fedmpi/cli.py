"""The command line. The one place that names COMM_WORLD, and the one that turns errors into exit codes.

Help, version and completion import neither torch nor mpi4py: commands import what they run.
"""

import contextlib
import ctypes
import hashlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, NoReturn

import click

from fedmpi import __version__
from fedmpi.errors import ConfigError, DataError, FedmpiError, LaunchError, RankFailure

if TYPE_CHECKING:
    from mpi4py import MPI

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED = 0, 1, 2, 70, 130
FAREWELL_SECONDS = (2.0, 3.0, 5.0)
"""How long a rank waits for the others to fail as well, before it ends the job for all: one that failed itself; rank 0,
having heard of a failure; any other rank, having heard of it."""
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
"""Set by launchers in every process that they start."""


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are used."""

    LAZY: ClassVar = {
        "config": ("fedmpi.cli_config", "config_group"),
        "data": ("fedmpi.cli_data", "data_group"),
        "doctor": ("fedmpi.doctor", "doctor"),
        "export-scalars": ("fedmpi.cli_scalars", "export_scalars"),
        "inspect": ("fedmpi.cli_inspect", "inspect"),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(ctx), *self.LAZY])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in self.LAZY:
            return super().get_command(ctx, cmd_name)
        module, attribute = self.LAZY[cmd_name]
        command: click.Command = getattr(__import__(module, fromlist=[attribute]), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fedmpi", message="%(prog)s %(version)s")
def cli() -> None:
    """Federated person re-identification with adaptive pruning, as MPI ranks.

    The first run: mpirun -n 9 fedmpi train
    """


@cli.command()
@click.argument("config", required=False, metavar="[CONFIG]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key, as in --set run.seed=1."
)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/<name>-<time>.")
@click.option(
    "--progress/--no-progress", default=None, help="Show what is waited for on stderr; default: on a terminal."
)
def train(config: str | None, overrides: Sequence[str], out: Path | None, progress: bool | None) -> None:  # noqa: FBT001
    """Train a federation: CONFIG is a YAML file or the name of a shipped one (default: quickstart).

    Rank 0 is the server, the other ranks host the clients; without mpirun one process does everything, with the same
    result to the bit.
    """
    from fedmpi.config import load_config  # noqa: PLC0415

    settings = load_config(config, overrides)
    fix_environment(settings.compute.threads)
    MPI = load_mpi()  # noqa: N806 - the name that everybody knows it by

    from fedmpi.console import View  # noqa: PLC0415
    from fedmpi.train import train as run  # noqa: PLC0415

    comm = MPI.COMM_WORLD
    run(comm, settings, out, View(progress=progress if comm.rank == 0 else False))


def fix_environment(threads: int) -> None:
    """Set what must be set before NumPy, torch and cuBLAS start: thread pools, and a deterministic workspace.

    The number of threads is part of the result's bits, so the configuration decides and not the launcher's environment.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    keep_freed_memory()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def load_mpi() -> ModuleType:
    """Import mpi4py's MPI, which starts MPI; ``LaunchError`` when there is no MPI library."""
    try:
        return import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        message = (
            "mpi4py finds no MPI library, and without one not even one rank can run: pip install 'fedmpi[mpich]' "
            "(in a checkout: pip install -e '.[mpich]'), or load your cluster's MPI module"
        )
        raise LaunchError(message) from error


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks instead of giving them back to the kernel.

    Training on a CPU frees and takes the same activations in every step; as fresh pages from the kernel they cost a
    tenth of the time with one process, and more with nine. Other C libraries are left as they are.
    """
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 512 << 20)
        mallopt(top_pad, 16 << 20)


def main() -> NoReturn:
    """Run the command line and leave with the right code; under MPI, never leave other ranks behind."""
    try:
        code = cli(standalone_mode=False) or EXIT_OK
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the other ranks must not wait for this one
        _fail(error)
    sys.exit(code)


def _fail(error: BaseException) -> NoReturn:
    """Say once what failed and leave; a rank that fails alone ends the whole job.

    The ranks meet once more, for a short time. If all come, all have failed: they agree on the exit code, and of those
    that have the same to say the first one says it. If not, the others are in the middle of something and would wait
    for this rank for ever.
    """
    code, told, text = _exit_code(error), bool(getattr(error, "__notes__", ())), _text(error)
    comm = _world()
    if comm is None or comm.size == 1:
        if isinstance(error, SystemExit):
            raise error
        _say(text, "" if _is_first_launched() else None)
        sys.exit(code)
    try:
        everyone = _meet(comm, code, text, _patience(comm, error, told=told))
        if everyone is not None:
            same = [rank for rank, (_, digest) in enumerate(everyone) if digest == everyone[comm.rank][1]]
            where = "" if told or len(same) == comm.size else f" (rank {comm.rank})"
            _say(text, where if comm.rank == same[0] else None)
            sys.exit(max(theirs for theirs, _ in everyone))
        _say(text, "" if told else f" (rank {comm.rank})")
    except Exception:  # noqa: BLE001 - even failing failed
        traceback.print_exc()
    sys.stderr.flush()
    comm.Abort(code)
    sys.exit(code)  # not reached where Abort does its work


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) and error.code else EXIT_FAILED
    if isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        return EXIT_INTERRUPTED
    if isinstance(error, click.ClickException | ConfigError | DataError | LaunchError):
        return EXIT_USAGE
    return EXIT_FAILED if isinstance(error, FedmpiError) else EXIT_BUG


def _text(error: BaseException) -> str:
    """Return what a person should read: one line for what was expected, everything for a bug."""
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r}) was called in the middle of the run"
    if isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        return "interrupted"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, FedmpiError):
        return "\n".join(getattr(error, "__notes__", ())) or str(error)
    lines = "".join(traceback.format_exception(error))
    return f"this is a bug in fedmpi; please report these lines:\n{lines.rstrip()}"


def _say(text: str, where: str | None) -> None:
    if where is not None:
        click.echo(f"fedmpi: error{where}: {text}", err=True)


def _world() -> "MPI.Intracomm | None":
    """Return COMM_WORLD if MPI is up; it is started for the purpose when a launcher has started several of us."""
    if "mpi4py.MPI" not in sys.modules and _launched_rank() is not None:
        with contextlib.suppress(ImportError, RuntimeError):
            import_module("mpi4py.MPI")
    module = sys.modules.get("mpi4py.MPI")
    if module is None or not module.Is_initialized() or module.Is_finalized():
        return None
    world: MPI.Intracomm = module.COMM_WORLD
    return world


def _launched_rank() -> str | None:
    """Return the rank that a launcher gave this process; whether MPI sees it as well is another question."""
    return next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), None)


def _is_first_launched() -> bool:
    return _launched_rank() in {None, "0"}


def _patience(comm: "MPI.Intracomm", error: BaseException, *, told: bool) -> float:
    """Return how long to wait for the others, in seconds: whoever knows most gives up first, and speaks for all."""
    second_hand = told and isinstance(error, RankFailure)
    return FAREWELL_SECONDS[0 if not second_hand else 1 if comm.rank == 0 else 2]


def _meet(comm: "MPI.Intracomm", code: int, text: str, seconds: float) -> list[tuple[int, int]] | None:
    """Return (exit code, digest of the text) of every rank; None when some do not come within ``seconds``."""
    import numpy as np  # noqa: PLC0415

    digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
    mine, everyone = np.array([code, digest], np.int64), np.empty((comm.size, 2), np.int64)
    request = comm.Iallgather(mine, everyone)
    end = time.monotonic() + seconds
    while not request.Test():
        if time.monotonic() > end:
            return None
        time.sleep(0.01)
    return [(int(theirs), int(digest)) for theirs, digest in everyone]
