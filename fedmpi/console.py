"""What a person sees: where the run happens, one aligned line per round, and what came out. Rank 0 only.

Lines go to stdout and are the same in a file. What moves (the stage that is waited for) goes to stderr, and only when
that is a terminal: launchers give ranks a pseudo-terminal on stdout even in a pipe.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedmpi.comm.devices import Seat

WIDTH = 100
CRR_NAMES = ("accepted", "halted", "recovered")


class View:
    """Prints a run; every method is called once per event on rank 0."""

    def __init__(self, *, progress: bool | None = None) -> None:
        self._out = _console(sys.stdout, None if sys.stdout.isatty() else WIDTH)
        self._err = _console(sys.stderr)
        self._live = self._err.is_terminal if progress is None else progress
        self._round, self._rounds, self._shown = 0, 0, 0.0

    def started(
        self, title: str, facts: Mapping[str, str], seats: Sequence[Seat], names: Sequence[str], warnings: Sequence[str]
    ) -> None:
        """Say what will run and where."""
        self._out.print(Text(title, style="bold"))
        for name, value in facts.items():
            self._out.print(f"  {name:<8} {value}", soft_wrap=True)
        table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=True)
        for column in ("rank", "host", "device", "role"):
            table.add_column(column, justify="right" if column == "rank" else "left")
        for seat in seats:
            hosts = ", ".join(f"{c} {names[c]}" for c in seat.clients)
            roles = [text for text in ("server" if seat.rank == 0 else "", f"client {hosts}" if hosts else "") if text]
            table.add_row(str(seat.rank), seat.host, seat.device, " + ".join(roles))
        self._out.print(table)
        for warning in warnings:
            self._out.print(f"  warning: {warning}", style="yellow", soft_wrap=True)

    def baseline(self, mean_map: float, rank1: float, rounds: int) -> None:
        """Print the head of the rounds' table and the untrained model's line."""
        self._rounds = rounds
        self._out.print()
        head = "  round    loss      KL    mAP  rank-1  density   MB up  MB down   saved   sec  pruning"
        self._print(Text(head, style="bold"))
        self._print(f"     --      --      -- {percent(mean_map):>6}  {percent(rank1):>6}  untrained model")

    def nothing_to_do(self, folder: Path, rounds: int) -> None:
        """Say that a run to be resumed was finished before."""
        self._out.print(
            f"{folder}/ is finished: all {rounds} rounds are done, nothing is left to resume", soft_wrap=True
        )

    def resumed(self, rounds: int) -> None:
        """Say after how many rounds the run goes on."""
        self._print(f"     --      --      --     --      --  resumed after round {rounds}")

    def begin(self, round: int) -> None:
        """Note which round the waiting belongs to."""
        self._round = round

    def round(self, row: Mapping[str, float], decisions: Mapping[str, int]) -> None:
        """Print one round; bytes in ``row`` are those of this round, ``saved`` is the share saved so far."""
        pruning = ", ".join(f"{count} {name}" for name, count in decisions.items() if count)
        self._print(
            f"{self._round + 1:>4}/{self._rounds:<4}{number(row['loss'], 2):>6}  {number(row['kl'], 3):>6} "
            f"{percent(row['map']):>6}  {percent(row['rank1']):>6}  {number(row['density'], 3):>7}  "
            f"{row['up'] / 1e6:>6.1f}  {row['down'] / 1e6:>7.1f}  {percent(row['saved']):>5}%  "
            f"{row['seconds']:>4.0f}  {pruning}"
        )

    def finished(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Print a line per client (scores untrained -> final), the totals, and where the files are."""
        table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=True)
        table.add_column("client", no_wrap=True)
        for column in (
            "mAP untrained",
            "-> final",
            "rank-1 untrained",
            "-> final",
            "density",
            "MB",
            "dense MB",
            "saved",
        ):
            table.add_column(column, justify="right")
        for name, client in (*summary["clients"].items(), ("mean", None)):
            table.add_row(name, *_cells(client or _mean(summary)), style=None if client else "bold")
        self._out.print()
        self._out.print(table)
        sent = summary["bytes_up"] + summary["bytes_down"]
        self._out.print(
            f"\n  sent {size(sent)} (up {size(summary['bytes_up'])}, down {size(summary['bytes_down'])}) instead of "
            f"{size(summary['bytes_dense'])} dense: {percent(summary['saved'])} % saved; "
            f"{summary['seconds']:.0f} s, peak memory {size(summary['peak_rss_bytes'])} a rank",
            soft_wrap=True,
        )
        self._out.print(f"  global model sha256 {summary['global_sha256']}", soft_wrap=True)
        self._out.print(
            f"  files in {folder}/: run.h5 summary.json config.yaml global.safetensors clients/", soft_wrap=True
        )

    def waiting(self, what: str) -> None:
        """Show what is waited for, on a terminal, at most ten times a second."""
        now = time.monotonic()
        if self._live and now - self._shown > 0.1:
            self._shown = now
            place = f"round {self._round + 1}/{self._rounds}: " if self._rounds else ""
            width = max(20, self._err.width - 1)
            self._err.file.write("\r\x1b[2K" + f"  {place}{what}"[:width])
            self._err.file.flush()

    def _print(self, line: Text | str) -> None:
        if self._live and self._shown:
            self._err.file.write("\r\x1b[2K")
            self._err.file.flush()
        self._out.print(line, soft_wrap=True)


def _console(file: IO[str], width: int | None = None) -> Console:
    """Return a console that prints text as it is: a path may look like rich's own language."""
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def percent(share: float) -> str:
    """Return a share as percent with one digit; "--" when it was not measured."""
    return "--" if share is None or math.isnan(share) else f"{100 * share:.1f}".replace("-0.0", "0.0")


def number(value: float, digits: int) -> str:
    """Return a number with so many digits; "--" when it was not measured."""
    return "--" if math.isnan(value) else f"{value:.{digits}f}"


def size(count: float) -> str:
    """Return bytes in decimal units, as the field counts them (1 MB = 1e6)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _cells(client: Mapping[str, Any]) -> list[str]:
    return [
        *(percent(client[key]) for key in ("map_before", "map_after", "rank1_before", "rank1_after")),
        number(client["density"], 3),
        f"{client['bytes'] / 1e6:.1f}",
        f"{client['bytes_dense'] / 1e6:.1f}",
        f"{percent(client['saved'])} %",
    ]


def _mean(summary: Mapping[str, Any]) -> dict[str, Any]:
    count = len(summary["clients"])
    sent = (summary["bytes_up"] + summary["bytes_down"]) / count
    return {**summary, "bytes": sent, "bytes_dense": summary["bytes_dense"] / count}
