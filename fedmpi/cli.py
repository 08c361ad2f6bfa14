"""The command line; with `farewell`, the one place that names COMM_WORLD.

Help, version and completion import neither torch nor mpi4py: commands import what they run.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, NoReturn

import click

from fedmpi import __version__
from fedmpi.errors import LaunchError
from fedmpi.farewell import EXIT_OK, leave

if TYPE_CHECKING:
    from fedmpi.config import RunConfig
    from fedmpi.stopping import Stopper


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are used."""

    LAZY: ClassVar = {
        "bench": ("fedmpi.bench", "bench"),
        "config": ("fedmpi.cli_config", "config_group"),
        "data": ("fedmpi.cli_data", "data_group"),
        "doctor": ("fedmpi.doctor", "doctor"),
        "export": ("fedmpi.cli_export", "export"),
        "evaluate": ("fedmpi.cli_evaluate", "evaluate"),
        "export-scalars": ("fedmpi.cli_scalars", "export_scalars"),
        "inspect": ("fedmpi.cli_inspect", "inspect"),
        "job": ("fedmpi.cli_job", "job"),
        "sweep": ("fedmpi.cli_sweep", "sweep"),
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
    "--resume",
    metavar="RUN|auto",
    help="Go on with the run in folder RUN, or with the newest unfinished one like this (or begin one): auto.",
)
@click.option(
    "--progress/--no-progress", default=None, help="Show what is waited for on stderr; default: on a terminal."
)
def train(
    config: str | None,
    overrides: Sequence[str],
    out: Path | None,
    resume: str | None,
    progress: bool | None,  # noqa: FBT001
) -> None:
    """Train a federation: CONFIG is a YAML file or the name of a shipped one (default: quickstart).

    Rank 0 is the server, the other ranks host the clients; without mpirun one process does everything, with the same
    result to the bit. SIGUSR1 or SIGTERM stops in good order with exit code 75, to be continued with --resume.
    """
    from fedmpi.config import load_config  # noqa: PLC0415
    from fedmpi.stopping import Stopper  # noqa: PLC0415

    if resume not in {None, "auto"}:
        if out is not None:
            raise click.UsageError("--resume RUN writes into RUN: leave --out away, or give --resume auto")
        config = config or _config_of(str(resume))
    settings = load_config(config, overrides)
    with Stopper(settings.checkpoint.grace_s, settings.checkpoint.wall_time_s).listening() as stopper:
        _train(settings, out, resume, stopper, progress=progress)


def _config_of(run: str) -> str:
    """Return the configuration file of a run folder; ``ConfigError`` when it is none."""
    from fedmpi import run_folder  # noqa: PLC0415

    return str(run_folder.reopen(Path(run)).config)


def _train(
    settings: "RunConfig", out: Path | None, resume: str | None, stopper: "Stopper", *, progress: bool | None
) -> None:
    fix_environment(settings.compute.threads)
    MPI = load_mpi()  # noqa: N806 - the name that everybody knows it by

    from fedmpi.console import View  # noqa: PLC0415
    from fedmpi.train import train as run  # noqa: PLC0415

    comm = MPI.COMM_WORLD
    view = View(progress=progress if comm.rank == 0 else False)
    run(comm, settings, out, view, resume=resume, stopper=stopper)


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
        leave(error)
    sys.exit(code)
