import io
import math
import sys
from pathlib import Path

import pytest

from fedmpi.comm.devices import Seat
from fedmpi.console import View, number, percent, size

NAN = math.nan
ROW = {
    "loss": 1.234, "kl": 0.0567, "map": 0.4321, "rank1": 0.5, "density": 0.85, "up": 12.3e6, "down": 14.5e6,
    "saved": 0.123, "seconds": 7.4,
}  # fmt: skip
SUMMARY = {
    "map_before": 0.1, "map_after": 0.5, "rank1_before": 0.2, "rank1_after": None, "density": 0.5, "saved": 0.25,
    "bytes_up": 1_000_000, "bytes_down": 2_000_000, "bytes_dense": 4_000_000, "seconds": 61.4,
    "peak_rss_bytes": 1_500_000_000, "global_sha256": "ab" * 32,
    "clients": {
        name: {
            "map_before": 0.1, "map_after": 0.5, "rank1_before": 0.2, "rank1_after": None, "density": 0.5,
            "bytes": 1_500_000, "bytes_dense": 2_000_000, "saved": 0.25,
        }
        for name in ("prid", "a-client-with-a-very-long-name-indeed")
    },
}  # fmt: skip


class TestNumbers:
    @pytest.mark.parametrize(("share", "text"), [(0.4321, "43.2"), (0, "0.0"), (1, "100.0"), (NAN, "--"), (None, "--")])
    def test_percent(self, share, text):
        assert percent(share) == text

    @pytest.mark.parametrize(("value", "digits", "text"), [(1.236, 2, "1.24"), (NAN, 2, "--")])
    def test_number(self, value, digits, text):
        assert number(value, digits) == text

    @pytest.mark.parametrize(
        ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (343_692_723, "343.7 MB"), (2.5e9, "2.50 GB")]
    )
    def test_size(self, count, text):
        assert size(count) == text


class TestRounds:
    def lines(self, capsys) -> list[str]:
        return capsys.readouterr().out.splitlines()

    def test_columns_stand_below_their_heads(self, capsys):
        view = View(progress=False)
        view.baseline(0.38, 0.125, 20)
        for turn in (0, 19):
            view.begin(turn)
            view.round(ROW, {"accepted": 6, "halted": 0, "recovered": 2})
        _, head, first, *rounds = self.lines(capsys)
        for text, line in zip(("38.0", "12.5"), (first, first), strict=True):
            assert text in line
        for line in rounds:
            for column, text in (("loss", "1.23"), ("mAP", "43.2"), ("MB up", "12.3"), ("MB down", "14.5")):
                end = head.index(column) + len(column)
                assert line[:end].endswith(text), f"{column}\n{head}\n{line}"
            assert line.endswith("6 accepted, 2 recovered")
        assert rounds[0].startswith("   1/20")
        assert rounds[1].startswith("  20/20")

    def test_what_was_not_measured(self, capsys):
        view = View(progress=False)
        view.baseline(NAN, NAN, 2)
        view.begin(0)
        view.round(ROW | {"loss": NAN, "kl": NAN, "map": NAN, "rank1": NAN}, {"accepted": 0})
        line = self.lines(capsys)[-1]
        assert "nan" not in line
        assert line.count("--") == 4


class TestStart:
    def test_where_everything_runs(self, capsys):
        view = View(progress=False)
        seats = [
            Seat(0, "node1", "cpu", "node1/cpu", ()),
            Seat(1, "node2", "cuda:0 H200", "node2/x", (0, 1)),
        ]
        view.started("fedmpi 0: x", {"data": "people", "out": "runs/x/"}, seats, ("prid", "ilids"), ["mind this"])
        out = capsys.readouterr().out
        lines = out.splitlines()
        assert lines[:3] == ["fedmpi 0: x", "  data     people", "  out      runs/x/"]
        (server,) = (line for line in lines if "node1" in line)
        (client,) = (line for line in lines if "node2" in line)
        assert server.split() == ["0", "node1", "cpu", "server"]
        assert client.split() == ["1", "node2", "cuda:0", "H200", "client", "0", "prid,", "1", "ilids"]
        assert "  warning: mind this" in lines

    def test_one_process_is_server_and_clients(self, capsys):
        view = View(progress=False)
        view.started("t", {}, [Seat(0, "n", "cpu", "n/cpu", (0,))], ("prid",), [])
        assert "server + client 0 prid" in capsys.readouterr().out

    def test_text_in_brackets_is_no_markup(self, capsys):
        view = View(progress=False)
        view.started("t", {"data": "[bold]/x/[a]/"}, [Seat(0, "[h]", "cpu", "i", (0,))], ("[red]x",), ["[b]w"])
        out = capsys.readouterr().out
        for text in ("[bold]/x/[a]/", "[h]", "[red]x", "[b]w"):
            assert text in out


class TestEnd:
    def test_clients_totals_and_files(self, capsys):
        view = View(progress=False)
        view.finished(SUMMARY, Path("runs/q"))
        out = capsys.readouterr().out
        (prid,) = (line for line in out.splitlines() if line.lstrip().startswith("prid"))
        assert prid.split() == ["prid", "10.0", "50.0", "20.0", "--", "0.500", "1.5", "2.0", "25.0", "%"]
        (mean,) = (line for line in out.splitlines() if line.lstrip().startswith("mean"))
        assert mean.split() == ["mean", "10.0", "50.0", "20.0", "--", "0.500", "1.5", "2.0", "25.0", "%"]
        assert "sent 3.0 MB (up 1.0 MB, down 2.0 MB) instead of 4.0 MB dense: 25.0 % saved; 61 s" in out
        assert "ab" * 32 in out
        assert "runs/q/: run.h5 summary.json" in out

    def test_a_long_name_costs_no_figure(self, capsys):
        view = View(progress=False)
        view.finished(SUMMARY, Path("runs/q"))
        out = capsys.readouterr().out
        assert out.count("25.0 %") >= 4


class TestWaiting:
    def test_nothing_moves_where_nobody_looks(self, capsys):
        view = View(progress=False)
        view.baseline(0.1, 0.1, 3)
        view.waiting("client 3 on rank 4")
        assert capsys.readouterr().err == ""

    def test_on_a_terminal_one_line_is_rewritten_and_cleared(self, monkeypatch):
        screen = io.StringIO()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        view = View(progress=True)
        view.baseline(0.1, 0.1, 3)
        view.begin(1)
        view.waiting("client 3 on rank 4")
        view.waiting("too soon to be shown")
        assert screen.getvalue().endswith("  round 2/3: client 3 on rank 4")
        assert "too soon" not in screen.getvalue()
        assert "\n" not in screen.getvalue()
        view.round(ROW, {})
        assert screen.getvalue().endswith("\r\x1b[2K")
        assert "2/3" in sys.stdout.getvalue()
