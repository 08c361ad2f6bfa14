"""``fedmpi bench``: the commands; their help imports neither torch nor mpi4py."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmpi.bench.records import check_free, table, write_json
from fedmpi.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mpi4py import MPI

    from fedmpi.bench.cases import Model
    from fedmpi.bench.records import Record

ARCHITECTURES = ("resnet18", "resnet34", "resnet50")
CODINGS = ("raw", "lossless", "bf16", "fp16")
NODES = click.option(
    "--nodes",
    type=click.IntRange(2),
    metavar="N",
    help="Pretend that the ranks fill N nodes (comm.uplink hierarchical).",
)


@click.group("bench")
def bench() -> None:
    """Measure kernels, exchange and codings on this machine.

    Variants are interleaved and medians taken: only ratios inside one run mean much. --json FILE writes a list of
    records with bench, name, density, plan, coding, seconds, bytes and ratio_to_dense.
    """


def _densities(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[float, ...]:
    """Return the numbers in (0, 1] of a text that separates them by commas."""
    try:
        numbers = tuple(float(word) for word in value.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number <= 1 for number in numbers):
        raise click.BadParameter(f"{value!r}: give numbers above 0 and at most 1, as in 0.1,0.3")
    return numbers


def options(densities: str, *, repeats: int = 7) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds what all commands take."""
    shared = (
        click.option("--densities", callback=_densities, default=densities, show_default=True, help="Shares kept."),
        click.option("--repeats", type=click.IntRange(1), default=repeats, show_default=True, help="Turns that count."),
        click.option("--model", type=click.Choice(ARCHITECTURES), default="resnet18", show_default=True),
        click.option("--size", type=click.IntRange(1), metavar="N", help="One tensor of N parameters, not a network."),
        click.option("--json", "path", type=click.Path(path_type=Path), help="Write the records to a new file."),
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(shared):
            command = option(command)
        return command

    return decorate


@bench.command("kernels")
@options("0.1,0.3,0.5")
def kernels(densities: tuple[float, ...], repeats: int, model: str, size: int | None, path: Path | None) -> None:
    """Pack, expand, masked copy and merge, compiled, in torch and in NumPy.

    CPU time of one thread. Pack and expand are compared with one copy of the dense vector, the merge of eight clients
    with the mean of eight dense vectors in torch. Torch works on positions that it searches once for each mask.
    """
    check_free(path)
    from fedmpi.bench import kernels as room  # noqa: PLC0415 - help stays fast

    count = size or _model(model, size).layout.size
    _head(f"{count:,} parameters, {room.CLIENTS} clients, medians of {repeats}")
    _show(list(room.measure(count, densities, repeats)), room.rows, 2, path)


@bench.command("codec")
@options("0.01,0.1,0.3,0.5,0.7")
def codec(densities: tuple[float, ...], repeats: int, model: str, size: int | None, path: Path | None) -> None:
    """Bytes of masks and values against their entropy, and how fast they are coded.

    "/ bound" is against the entropy of the mask and 4 bytes a value; a mask change against the entropy of which
    survivors died. MB/s counts the bytes that travel.
    """
    check_free(path)
    from fedmpi.bench import codec as room  # noqa: PLC0415 - help stays fast

    made = _model(model, size)
    _head(f"{made.layout.size:,} parameters in {len(made.layout.names)} tensors, medians of {repeats}")
    _show(list(room.measure(made, densities, repeats)), room.rows, 2, path)


@bench.command("exchange")
@options("0.1,0.3,1.0")
@click.option("--segment-mb", type=click.FloatRange(0, min_open=True), metavar="MB", help="As comm.segment_mb.")
@NODES
@click.option("--values", "codings", type=click.Choice(CODINGS), multiple=True, default=("raw",), show_default=True)
def exchange(
    densities: tuple[float, ...],
    repeats: int,
    model: str,
    size: int | None,
    path: Path | None,
    segment_mb: float | None,
    nodes: int | None,
    codings: tuple[str, ...],
) -> None:
    """One round's exchange, dense and sparse: mpirun -n 9 fedmpi bench exchange.

    Rank 0 is the server, every other rank a client; nothing is trained, and masks are known on both ends. Wall time,
    compared with the fastest dense plan of the same phase; the server's memory above its state, compared with one dense
    vector. The last line is the CPU time that all clients together burn in a second of waiting.
    """
    comm = _world()
    from fedmpi.bench import exchange as room  # noqa: PLC0415 - help stays fast

    if comm.rank == 0:
        check_free(path)
    made = _model(model, size)
    if comm.rank == 0:
        _head(f"{made.layout.size:,} parameters, {comm.size - 1} clients, medians of {repeats}")
    segment_bytes = None if segment_mb is None else int(1e6 * segment_mb)
    records = room.measure(comm, made.layout, densities, codings, repeats, segment_bytes, nodes)
    if comm.rank == 0:
        _show(records, room.rows, 3, path)


@bench.command("scale")
@options("0.1", repeats=5)
@NODES
def scale(
    densities: tuple[float, ...], repeats: int, model: str, size: int | None, path: Path | None, nodes: int | None
) -> None:
    """Server CPU and wall time of an uplink against the number of clients: mpirun -n 65 fedmpi bench scale.

    8, 16, 32 ... clients as far as there are ranks, and the straight line through them beyond. With more ranks than
    cores wall time is that of all ranks' work together; the server's CPU time says what it has to do itself.
    """
    comm = _world()
    from fedmpi.bench import scale as room  # noqa: PLC0415 - help stays fast

    if comm.rank == 0:
        check_free(path)
    made = _model(model, size)
    if comm.rank == 0:
        _head(f"{made.layout.size:,} parameters, medians of {repeats}")
    records = room.measure(comm, made.layout, densities, repeats, nodes)
    if comm.rank == 0:
        _show(records, room.rows, 2, path)


@bench.command("device")
@options("0.1,0.3,0.5,1.0")
@click.option("--device", type=click.Choice(("cuda", "cpu")), default="cuda", show_default=True)
def device(
    densities: tuple[float, ...], repeats: int, model: str, size: int | None, path: Path | None, device: str
) -> None:
    """How a model moves between a GPU and the host, and how fast it is packed and expanded there.

    Wall time until the GPU has done it. Pack and expand are compared with one copy on the GPU; ways to and from it
    with the whole model without a pinned buffer (compute.staging=false); a model that comes in a message with one that
    passes the host's memory (compute.direct=false). The message is one of this process to itself.
    """
    check_free(path)
    _world()
    from fedmpi.bench import device as room  # noqa: PLC0415 - help stays fast

    found, made = room.find(device), _model(model, size)
    _head(f"{made.layout.size:,} parameters on {device}, medians of {repeats}")
    _show(list(room.measure(found, made.layout.size, densities, repeats)), room.rows, 2, path)


@bench.command("peers")
@click.option("--python", type=click.Path(path_type=Path), help="Python of the environment that has them.")
@click.option("--size", type=click.IntRange(1), default=1_000_000, show_default=True, help="Parameters.")
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--limit", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True, metavar="SECONDS")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the records to a new file.")
def peers(python: Path | None, size: int, clients: int, rounds: int, limit: float, path: Path | None) -> None:
    """The same exchange in Flower's simulation and in APPFL, dense and without training.

    They are no dependencies: make them an environment of their own and name its Python: python3 -m venv peers;
    peers/bin/pip install 'flwr[simulation]' appfl mpi4py mpich. A system gets --limit seconds; of its rounds the first
    is left out. Their bytes are those of the values.
    """
    check_free(path)
    from fedmpi.bench import peers as room  # noqa: PLC0415 - help stays fast

    _head(f"{size:,} parameters, {clients} clients")
    found = room.measure(python or Path(sys.executable), size, clients, rounds, limit, partial(click.echo, err=True))
    _show(list(found), room.rows, 1, path)


def _world() -> MPI.Intracomm:
    """Start MPI, with one thread per rank; `fedmpi.cli` looks after ranks that fail."""
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        from mpi4py import MPI  # noqa: PLC0415 - help stays fast
    except (ImportError, RuntimeError) as error:
        raise LaunchError("mpi4py finds no MPI library: fedmpi doctor says what to install") from error
    return MPI.COMM_WORLD


def _model(arch: str, size: int | None) -> Model:
    from fedmpi.bench.cases import Model  # noqa: PLC0415 - help stays fast

    return Model.vector(size) if size else Model.network(arch)


def _head(text: str) -> None:
    from fedmpi.sparse import kernels as used  # noqa: PLC0415 - help stays fast

    click.echo(f"{text}; kernels in use: {used.active()}\n")


def _show(
    records: Sequence[Record],
    rows: Callable[[Sequence[Record]], Iterable[Sequence[str]]],
    texts: int,
    path: Path | None,
) -> None:
    click.echo("\n".join(table(list(rows(records)), texts)))
    if path is not None:
        write_json(records, path)
