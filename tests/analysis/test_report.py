import base64
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import report
from PIL import Image

from fedmpi.record import RunWriter, open_run
from tests.analysis import sample

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Collects what a browser would load, the links, and the texts of the tables."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.links, self.names, self.cells, self.words = [], [], [], [], [], []
        self._open = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.sources += [given[key] for key in ("src", "data", "poster") if key in given]
        self.links += [given["href"]] if "href" in given else []
        self.names += [given["id"]] if "id" in given else []
        if tag == "tr":
            self.cells.append([])
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self._open and self._open[-1] in {"td", "th"}:
            self.cells[-1].append(data)

    def row(self, *start):
        return next(row for row in self.cells if row[: len(start)] == list(start))


def text_of(path):
    with open_run(path) as run:
        return report.build(run)


def page_of(path):
    return Page(text_of(path))


@pytest.fixture(scope="module")
def text(written):
    return text_of(written)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_it_needs_nothing_from_elsewhere(page):
    assert len(page.sources) > 8
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert not {"script", "link", "iframe", "object", "embed", "style src"} & set(page.tags)
    assert all(link.startswith("#") and link[1:] in page.names for link in page.links)
    for source in page.sources:
        drawn = base64.b64decode(source.split(",")[1])
        assert drawn.startswith(b"<?xml")
        assert b'href="http' not in drawn.replace(b'xmlns:xlink="http', b"")


def test_the_same_run_gives_the_same_page(text, written):
    same = text_of(written) == text  # a difference of megabytes is not shown
    assert same


def test_scores_and_bytes_of_every_client(page):
    # untrained, final, best and its round, twice; density; 21970 of 3 * (4192 + 4168) bytes
    assert page.row("market") == [
        "market", "30", "10.0", "50.0", "50.0 (2)", "10.0", "60.0", "60.0 (2)", "0.750", "22.0 kB", "25.1 kB", "12.4 %",
    ]  # fmt: skip
    assert page.row("mean, total")[-3:] == ["45.2 kB", "50.2 kB", "10.0 %"]
    assert page.row("uplink")[1:3] == ["20.4 kB", "200 B"]
    assert page.row("LotteryFL")[1:3] == ["39.0 kB", "0.812"]
    assert page.row("subset") == ["subset", "4", "200 B"]


def test_decisions_of_every_client(page):
    head = page.row("client", "accepted")
    assert head == ["client", "accepted", "halted", "recovered"]
    assert [row for row in page.cells if row[:1] == ["prid"] and len(row) == 4] == [["prid", "2", "1", "0"]]
    assert next(row for row in page.cells if len(row) == 7 and row[:2] == ["market", "2"]) == [
        "market",
        "2",
        "recovered",
        "--",
        "0.5000",
        "--",
        "0.7500",
    ]


def test_times(page):
    assert page.row("local work") == ["local work", "18.0 s", "66.7 %"]
    assert page.row("other") == ["other", "1.5 s", "5.6 %"]  # 9.0 - 0.5 - 6.0 - 1.0 - 1.0


@pytest.mark.parametrize(
    ("origin", "changes", "word"),
    [
        ({"probe": "test"}, {}, "labels leak into the scores"),
        ({"git_dirty": "yes"}, {}, "changes that are in no commit"),
        ({}, {"skipped": [0, 1]}, "refused 3 updates: prid (round 0), prid (round 1), prid (round 2)"),
        ({}, {"bad_images": [0, 4]}, "Unreadable training images: 4 of prid."),
        ({"status": "failed", "error": "disk full"}, {}, "failed after 3 committed rounds: disk full"),
        ({"status": "stopped", "error": "SIGINT; continue with: x"}, {}, "stop after 3 committed rounds: SIGINT. fed"),
        ({"probe": "loss"}, {}, "embedded drawn people"),
    ],
)
def test_what_a_reader_must_know(tmp_path, origin, changes, word):
    with open_run(sample.write(tmp_path / "run.h5", changes=changes, **origin)) as run:
        assert word in " ".join(report.notes(run))


def test_a_run_that_is_not_evaluated_yet(tmp_path):
    nan = {name: [np.nan, np.nan] for name in ("map", "rank1")}
    with open_run(sample.write(tmp_path / "run.h5", rounds=2, status="stopped", changes=nan)) as run:
        assert [figure for figure, *_ in report.headline(run)[:2]] == ["not yet", "not yet"]
        assert "2 of 3 rounds" in report.top(run)[1]


def test_an_ordinary_run_has_one_note(page):
    assert page.tags.count("li") == 1
    assert "The clients are fedmpi's embedded drawn people: their scores say nothing about photographs." in page.words


def test_uniform_weights_are_told(tmp_path):
    with RunWriter.create(tmp_path / "run.h5", sample.CLIENTS, (), sample.provenance()) as writer:
        for t in range(3):
            scalars = sample.scalars(t) | {"uniform_weights": int(t > 0)}
            writer.commit(t, scalars, sample.clients(t), {}, sample.messages(t))
    with open_run(tmp_path / "run.h5") as run:
        assert "Aggregation fell back to uniform weights in 2 rounds: 1, 2." in report.notes(run)


def test_names_and_errors_are_text_not_markup(tmp_path):
    names = ("<img src=http://x>", "a&b")
    path = sample.write(tmp_path / "run.h5", names=names, status="failed", error="<script>alert(1)</script>")
    page = page_of(path)
    assert "script" not in page.tags
    assert "http://x" not in page.sources
    assert any(row[:1] == ["<img src=http://x>"] for row in page.cells)
    assert any("<script>alert(1)</script>" in word for word in page.words)


def test_resumes_have_a_column_each(tmp_path):
    path, writer = sample.write(tmp_path / "run.h5", rounds=2, status="running")
    writer.close("failed", "killed")
    with RunWriter.reopen(path, 1, sample.provenance(host="second")) as writer:
        sample.commit(writer, 1)
    page = page_of(path)
    assert ["begun", "resume 1"] in page.cells
    assert page.row("after rounds") == ["after rounds", "1"]  # cells without text give no data
    assert page.row("host") == ["host", "second"]


def test_it_goes_beside_the_run_file(run_file, invoke):
    assert invoke(report.main, run_file.parent).strip() == str(run_file.parent / "report.html")
    assert (run_file.parent / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome to open the page with")
def test_a_browser_shows_it(run_file, tmp_path, invoke):
    """The page as a headless browser draws it: title, figures in our colours, nothing refused or missing."""
    invoke(report.main, run_file, "--out", tmp_path / "page.html")
    picture = tmp_path / "page.png"
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    switches += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    switches += ["--enable-logging=stderr", "--hide-scrollbars", "--window-size=1200,6000", f"--screenshot={picture}"]
    command = [BROWSER, *switches, (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert picture.exists(), done.stderr
    for word in ("Refused to", "ERR_FILE_NOT_FOUND", "Uncaught"):
        assert word not in done.stderr
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape == (6000, 1200, 3)
    for colour in ((0, 114, 178), (213, 94, 0), (230, 159, 0)):  # bars, lines and decisions of the figures
        assert (pixels == colour).all(axis=2).sum() > 1500
