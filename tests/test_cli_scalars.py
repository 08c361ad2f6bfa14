import csv
import math

import numpy as np
import pytest
from click.testing import CliRunner

from fedmpi import event_file, scalars
from fedmpi.cli_scalars import export_scalars
from fedmpi.errors import ConfigError
from fedmpi.record import open_run
from tests.analysis import sample

# Written by TensorBoard's own RecordWriter and event.proto: the file version, and two scalars at step 300.
GOLDEN = bytes.fromhex(
    "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b353110"
    "300000000000000095f5d05f0900009042fc54d94110ac022a220a110a0a6c6f73732f746f74616c"
    "150000c03f0a0d0a066d415020c3a915cdccccbd16b8abe2"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return sample.write(tmp_path_factory.mktemp("run") / "run.h5")


def export(*arguments):
    result = CliRunner().invoke(export_scalars, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output.split()


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_of_clients(finished, tmp_path):
    export(finished, "--out", tmp_path)
    rows = table(tmp_path / "clients.csv")
    assert [(r["round"], r["client"]) for r in rows] == [(str(t), c) for t in range(3) for c in sample.CLIENTS]
    assert [int(r["bytes_up_mask"]) for r in rows] == sample.MASK.ravel().tolist()
    assert [r["map"] for r in rows] == ["0.2", "0.4", "", "", "0.5", "0.7"]
    assert [r["clusters"] for r in rows] == ["7.0", ""] * 3  # a count that one client did not measure
    assert [r["train_images"] for r in rows] == ["30", "20"] * 3
    assert {r["crr_received"] for r in rows} == {""}


def test_csv_of_the_other_groups(finished, tmp_path):
    groups = [word for name in ("rounds", "layers", "baseline", "messages") for word in ("--group", name)]
    export(finished, "--out", tmp_path, *groups)
    assert [int(r["bytes_up"]) for r in table(tmp_path / "rounds.csv")] == sample.UP.sum(axis=1).tolist()
    assert [r["client"] + r["map"] for r in table(tmp_path / "baseline.csv")] == ["market0.1", "prid0.2"]
    layers = [r for r in table(tmp_path / "layers.csv") if r["layer"] == "net.conv.weight"]
    assert [int(r["bytes_values"]) for r in layers] == (4 * (sample.KEPT - 200)).ravel().tolist()
    messages = table(tmp_path / "messages.csv")
    assert len(messages) == 12
    assert sum(int(r["bytes"]) for r in messages if r["direction"] == "up") == 21752
    assert messages[2]["mask_mode"] == "subset"
    assert messages[2]["seconds"] == ""
    assert not (tmp_path / "clients.csv").exists()


def test_variables_are_explained(finished, tmp_path):
    export(finished, "--out", tmp_path, "--group", "rounds")
    units = {r["variable"]: r["units"] for r in table(tmp_path / "variables.csv")}
    assert units["bytes_up"] == "byte"
    assert units["seconds"] == "s"


def test_no_layers_no_file(tmp_path):
    path = sample.write(tmp_path / "run.h5", layered=False)
    export(path, "--group", "layers", "--group", "rounds")
    assert sorted(file.name for file in (tmp_path / "scalars").iterdir()) == ["rounds.csv", "variables.csv"]


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_run_that_goes_on(tmp_path, rounds):
    path, writer = sample.write(tmp_path / "run.h5", rounds=rounds, status="running")
    with writer:
        export(path, "--format", "csv", "--format", "tensorboard")
    assert len(table(tmp_path / "scalars" / "rounds.csv")) == rounds


def test_parquet_says_what_is_missing(finished, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(scalars.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'fedmpi\[parquet\]'"):
        export(finished, "--format", "parquet", "--out", tmp_path)


def test_parquet(finished, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra `parquet`) is not installed")
    export(finished, "--format", "parquet", "--out", tmp_path, "--group", "clients", "--group", "messages")
    read = parquet.read_table(tmp_path / "clients.parquet")
    assert read.column("map").to_pylist() == [0.2, 0.4, None, None, 0.5, 0.7]
    assert read.column("client").to_pylist() == list(sample.CLIENTS) * 3
    assert read.schema.field("bytes_up_values").metadata == {b"units": b"byte"}
    assert sum(parquet.read_table(tmp_path / "messages.parquet").column("bytes").to_pylist()) == 45160


def test_a_folder_that_cannot_be_made(finished, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another --out"):
        export(finished, "--out", tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("data", "crc"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_crc32c_of_rfc_3720(data, crc):
    assert event_file.crc32c(data) == crc


def test_events_are_those_of_tensorboard(tmp_path):
    with event_file.EventWriter(tmp_path, 1700000000.5) as writer:
        writer.add(1700000010.25, 300, {"loss/total": 1.5, "mAP é": -0.1})
        writer.add(1700000011.0, 301, {})
    assert writer.path.read_bytes() == GOLDEN


def test_tensorboard_reads_them(finished, tmp_path):
    name = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(name, reason="tensorboard is not installed")
    export(finished, "--format", "tensorboard", "--out", tmp_path)
    read = accumulator.EventAccumulator(str(tmp_path / "client_prid")).Reload()
    assert [(e.step, round(e.value, 6)) for e in read.Scalars("map")] == [(0, 0.2), (1, 0.4), (3, 0.7)]
    assert [e.wall_time for e in read.Scalars("density")] == [sample.STARTED + 10 * t + 9 for t in range(3)]


def test_one_tensorboard_run_for_the_server_and_each_client(finished, tmp_path):
    paths = export(finished, "--format", "tensorboard", "--out", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["client_market", "client_prid", "server"]
    assert len(paths) == 3
    again = tmp_path / "again"
    export(finished, "--format", "tensorboard", "--out", again)
    for path in again.rglob("events*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(again)).read_bytes()


def test_client_names_stay_inside_the_folder(tmp_path):
    path = sample.write(tmp_path / "run.h5", names=("../../up", "../../Up"))
    export(path, "--format", "tensorboard", "--out", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "client_..%2F..%2FUp",
        "client_..%2F..%2Fup",
        "server",
    ]


def test_tags_of_one_kind_share_a_section():
    assert [scalars.tag(n) for n in ("seconds_train", "loss_kl", "map", "global_map", "seconds")] == [
        "seconds/train",
        "loss/kl",
        "map",
        "global_map",
        "seconds",
    ]


def test_columns_have_equal_length(finished):
    with open_run(finished) as run:
        for group, rows in (("rounds", 3), ("clients", 6), ("layers", 12), ("baseline", 2), ("messages", 12)):
            lengths = {len(column) for column in scalars.columns(run, group).values()}
            assert lengths == {rows}
        assert np.isnan(scalars.columns(run, "clients")["crr_after"]).all()
        assert math.isnan(scalars.columns(run, "clients")["clusters"][1])
