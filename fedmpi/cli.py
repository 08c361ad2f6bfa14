"""The command line. The one place that names COMM_WORLD, and the one that turns errors into exit codes.

Help, version and completion import neither torch nor mpi4py: commands import what they run.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

import click

from fedmpi import __version__
from fedmpi.errors import ConfigError, DataError, FedmpiError, LaunchError, RankFailure

if TYPE_CHECKING:
    from mpi4py import MPI

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_BUG = 0, 1, 2, 70
FAREWELL_SECONDS = 3.0
"""How long a failing rank waits for the others to fail as well, before it ends the job for all."""


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are used."""

    LAZY: ClassVar = {
        "config": ("fedmpi.cli_config", "config_group"),
        "data": ("fedmpi.cli_data", "data_group"),
        "doctor": ("fedmpi.doctor", "doctor"),
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
    from mpi4py import MPI  # noqa: PLC0415

    from fedmpi.console import View  # noqa: PLC0415
    from fedmpi.train import train as run  # noqa: PLC0415

    comm = MPI.COMM_WORLD
    run(comm, settings, out, View(progress=progress if comm.rank == 0 else False))


def fix_environment(threads: int) -> None:
    """Set what must be set before NumPy, torch and cuBLAS start: thread pools, and a deterministic workspace.

    The number of threads is part of the result's bits, so the configuration decides and not the launcher's environment.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def main() -> NoReturn:
    """Run the command line and leave with the right code; under MPI, never leave other ranks behind."""
    code = EXIT_OK
    try:
        code = cli(standalone_mode=False) or EXIT_OK
    except click.exceptions.Abort:
        code = _report("interrupted", 130)
    except click.ClickException as error:
        code = _report(error.format_message(), EXIT_USAGE)
    except RankFailure as error:
        # The rank that failed has spoken; the server repeats it, since its output is what people keep.
        code = _report(str(error), EXIT_FAILED, only_first=True)
    except (ConfigError, DataError, LaunchError) as error:
        code = _report(str(error), EXIT_USAGE)
    except FedmpiError as error:
        code = _report(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        code = _report("interrupted", 130)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else EXIT_FAILED
    except BaseException:  # noqa: BLE001 - a bug: show all of it, and free the other ranks
        traceback.print_exc()
        code = _report("this is a bug in fedmpi; please report the lines above", EXIT_BUG)
    _leave(code)


def _report(message: str, code: int, *, only_first: bool = False) -> int:
    comm = _world()
    rank = comm.rank if comm is not None else 0
    if not only_first or rank == 0:
        where = f" (rank {rank})" if comm is not None and comm.size > 1 else ""
        click.echo(f"fedmpi: error{where}: {message}", err=True)
    return code


def _world() -> "MPI.Intracomm | None":
    """Return COMM_WORLD if MPI was started and is still up."""
    module = sys.modules.get("mpi4py.MPI")
    if module is None or not module.Is_initialized() or module.Is_finalized():
        return None
    world: MPI.Intracomm = module.COMM_WORLD
    return world


def _leave(code: int) -> NoReturn:
    """Leave with ``code``; a rank that fails alone ends the whole job.

    After an error the ranks meet once more, for a short time. If all come, all have failed and each leaves calmly. If
    not, the others wait for this one somewhere, and would wait for ever.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    comm = _world()
    if code != EXIT_OK and comm is not None and comm.size > 1:
        from fedmpi.comm import Patience  # noqa: PLC0415

        try:
            Patience(deadline=FAREWELL_SECONDS).wait(comm.Ibarrier(), "all ranks to fail")
        except FedmpiError:
            comm.Abort(code)
    sys.exit(code)
