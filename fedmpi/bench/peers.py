"""``bench peers``: the same exchange in Flower's simulation and in APPFL, where they are installed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from fedmpi.bench.records import Record, cell, milliseconds
from fedmpi.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PEERS = {
    "Flower simulation": ("flwr", "flwr[simulation]", "peer_flower.py", False),
    "APPFL, MPI": ("appfl", "appfl mpi4py", "peer_appfl.py", True),
}
"""Distribution, what pip installs, script, and whether it runs under mpirun."""
PLANS = ("messages", "shared memory")
"""Of fedmpi's own exchange, those that a run takes by itself."""
HERE = Path(__file__).parent


class NoResultError(RuntimeError):
    """A program failed or took too long; the text says why."""


def measure(
    python: Path, size: int, clients: int, rounds: int, limit: float, say: Callable[[str], None]
) -> Iterator[Record]:
    """Yield one record per system that is installed for ``python``, and those of fedmpi.

    A peer's name ends with its version. Its first round is left out when there is another: it includes its start.
    ``ratio_to_dense`` is over fedmpi's exchange of all values by messages (density 1). ``say`` is told what is missing
    or took longer than ``limit`` seconds.

    Raises
    ------
    ConfigError
        None of them is installed for ``python``.
    LaunchError
        There is no mpirun, or fedmpi's own exchange failed.
    """
    versions = {name: _version(python, peer[0]) for name, peer in PEERS.items()}
    for name in (name for name, version in versions.items() if version is None):
        say(f"{name}: not installed for {python}: pip install {PEERS[name][1]}")
    if not any(versions.values()):
        raise ConfigError(f"no peer is installed for {python}: give the Python of their environment by --python")
    own = _own(size, clients, limit)
    dense = next(record for record in own if record.density == 1 and record.plan == "messages")
    moved = 2 * 4 * size * clients
    for name, version in versions.items():
        if version is None:
            continue
        _, _, script, needs_mpi = PEERS[name]
        argv = [str(HERE / script), str(size), str(clients), str(rounds)]
        try:
            times = _times(python, argv, clients, limit, needs_mpi=needs_mpi)
        except NoResultError as reason:
            say(f"{name}: no result: {reason}")
            continue
        seconds = median(times[1:] or times)
        named = f"{name} {version}"
        yield Record("peers", named, 1.0, name, "raw", seconds, moved, seconds / (dense.seconds or 1))
    for record in own:
        share = (record.seconds or 0) / (dense.seconds or 1)
        named = f"fedmpi, {record.plan}"
        yield Record("peers", named, record.density, record.plan, "raw", record.seconds, record.bytes, share)


def _version(python: Path, distribution: str) -> str | None:
    """Return the version that is installed for ``python``, None when there is none."""
    code = f"import importlib.metadata; print(importlib.metadata.version({distribution!r}))"
    try:
        done = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True, timeout=60)  # noqa: S603
    except OSError as error:
        raise ConfigError(f"{python}: cannot be started ({error.strerror}); --python names a Python") from error
    return done.stdout.strip() if done.returncode == 0 else None


def _own(size: int, clients: int, limit: float) -> list[Record]:
    """Return fedmpi's exchange at densities 1 and 0.3, measured by its own bench in a job of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.json"
        words = ["-m", "fedmpi", "bench", "exchange", "--size", str(size), "--densities", "0.3,1", "--json", str(path)]
        try:
            _run([*_mpirun(Path(sys.executable), clients), sys.executable, *words], limit)
        except NoResultError as reason:
            message = f"fedmpi's own exchange failed: {reason}; try mpirun -n {clients + 1} fedmpi bench exchange"
            raise LaunchError(message) from reason
        records = [Record(**row) for row in json.loads(path.read_text())]
    return [record for record in records if record.name == "exchange" and record.plan in PLANS]


def _times(python: Path, argv: list[str], clients: int, limit: float, *, needs_mpi: bool) -> list[float]:
    """Return the seconds that a script printed; other ranks may have written into the same line."""
    out = _run([*(_mpirun(python, clients) if needs_mpi else []), str(python), *argv], limit)
    found = re.findall(r"seconds: (\[[^]]*\])", out)
    try:
        times: list[float] = json.loads(found[-1])
    except (IndexError, ValueError):
        raise NoResultError("it printed no times") from None
    return times


def _mpirun(python: Path, clients: int) -> list[str]:
    """Return the launcher beside ``python``, or the first on the path."""
    beside = python.with_name("mpirun")
    return [str(beside) if beside.exists() else "mpirun", "-n", str(clients + 1)]


def _run(argv: Sequence[str], limit: float) -> str:
    """Return what a program printed; nothing of it is left behind.

    Raises
    ------
    NoResultError
        It failed, or took longer than ``limit`` seconds.
    """
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as out:  # a pipe would be held open by whatever survives
        try:
            started = subprocess.Popen(argv, stdout=out, stderr=out, env=env, start_new_session=True)  # noqa: S603
        except OSError as error:
            raise NoResultError(f"{argv[0]} cannot be started ({error.strerror})") from error
        try:
            code: int | None = started.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):  # workers of peers stay in the group of their parent
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        out.seek(0)
        printed = out.read()
    if code != 0:
        end = f"it did not end within {limit:g} s" if code is None else f"it failed with code {code}"
        said = [line.strip() for line in printed.splitlines() if line.strip()]
        raise NoResultError(f"{end}, its last words: {said[-1][:200]}" if said else end)
    return printed


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return the table, heads first."""
    table: list[tuple[str, ...]] = [("system", "density", "a round", "MB, both ways", "/ fedmpi dense")]
    for r in records:
        cells = (f"{r.density:g}", milliseconds(r.seconds or 0), cell((r.bytes or 0) / 1e6, 1))
        table.append((r.name, *cells, cell(r.ratio_to_dense, 2)))
    return table
