import builtins
import shutil
import subprocess

import h5py
import numpy as np
import pandas as pd
import pytest

from fedmpi.errors import SchemaError
from fedmpi.record import open_run, open_runs, schema
from tests.record import sample


def test_a_folder_or_a_file(finished):
    with open_run(finished.parent) as a, open_run(str(finished)) as b:
        assert a.path == b.path == finished
        assert repr(a) == f"Run({str(finished)!r}, finished, 4 rounds, 3 clients)"


def test_several_at_once(finished, create):
    other = create("other.h5")
    sample.write(other, 2)
    runs = open_runs([finished, other.path])
    assert [run.rounds for run in runs] == [4, 2]
    for run in runs:
        run.close()


def test_one_bad_run_of_several_leaves_none_open(finished, tmp_path):
    with pytest.raises(SchemaError, match=r"none.h5: no such run file"):
        open_runs([finished, tmp_path / "none.h5"])
    shutil.move(finished, tmp_path / "moved.h5")
    with h5py.File(tmp_path / "moved.h5", "r+"):  # HDF5 refuses to write what is open for reading in this process
        pass


def test_attributes_and_dims(finished):
    with open_run(finished) as run:
        attributes = run.attributes("clients/crr_decision")
        meanings = dict(zip(attributes["flag_values"].tolist(), attributes["flag_meanings"].split(), strict=True))
        assert meanings == {0: "off", 1: "accepted", 2: "halted", 3: "recovered", 4: "target_reached"}
        assert run.dims("layers/density") == ("round", "client", "layer")
        assert run.dims("layers/layer") == ("layer",)
        assert run.attributes("rounds/bytes_up")["units"] == "byte"


def test_an_unknown_name_gets_a_suggestion(finished):
    with (
        open_run(finished) as run,
        pytest.raises(SchemaError, match=r"no variable 'clients/densty'; .*clients/density"),
    ):
        run["clients/densty"]


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
@pytest.mark.parametrize("group", ["rounds", "clients", "layers", "baseline"])
def test_xarray_opens_it_with_labels_and_agrees_with_our_reader(finished, group, engine):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    with xarray.open_dataset(finished, group=group, engine=engine) as plain, open_run(finished) as run:
        ours = run.to_xarray(group)
        xarray.testing.assert_equal(plain, ours)
        for name in ours.variables:
            assert plain[name].attrs["units"] == ours[name].attrs["units"]
        if group != "rounds":
            assert plain.client.values.tolist() == list(sample.CLIENTS)
        if group == "clients":
            assert float(plain.density.sel(round=2, client="duke")) == sample.clients(2)["density"][1]
            assert int(plain.bytes_up_values.sum()) == sum_of_ups()
        if group == "baseline":
            assert plain["map"].values.tolist() == [0.1, 0.2, 0.3]


def sum_of_ups():
    tables = [sample.messages(r) for r in range(4)]
    return sum(int(t["values"][np.isin(t["direction"], [b"up", b"request"])].sum()) for t in tables)


def test_xarray_turns_counts_that_were_not_measured_into_nan(create):
    writer = create()
    _, scalars, clients, layers, messages = sample.parts(0)
    del clients["clusters"]
    writer.commit(0, scalars, clients, layers, messages)
    writer.close("finished")
    with open_run(writer.path) as run:
        dataset = run.to_xarray()
        assert np.isnan(dataset.clusters.values).all()
        assert dataset.outliers.values.tolist() == [[0, 1, 0]]
        assert "_FillValue" not in dataset.clusters.attrs


def test_pandas_reads_the_messages(finished):
    pytest.importorskip("tables")
    frame = pd.read_hdf(finished, "messages/table")
    expected = np.concatenate([sample.messages(r) for r in range(4)])
    assert list(frame.columns) == list(expected.dtype.names)
    for name in expected.dtype.names:
        values = frame[name].to_numpy()
        if expected[name].dtype.kind == "S":
            values = np.array([v if isinstance(v, bytes) else v.encode() for v in values])
        np.testing.assert_array_equal(values, expected[name])


def test_messages_as_a_frame_with_names(finished):
    with open_run(finished) as run:
        frame = run.to_dataframe()
    assert frame.groupby("direction", observed=True).size().to_dict() == {
        "down": 12, "up": 12, "request": 2, "recover": 2, "eval": 3,
    }  # fmt: skip
    assert set(frame.client) == set(sample.CLIENTS)
    assert frame["bytes"].sum() == sum(int(sample.messages(r)["bytes"].sum()) for r in range(4))


def test_groups_as_frames(finished):
    with open_run(finished) as run:
        clients, rounds, layers = (run.to_dataframe(name) for name in ("clients", "rounds", "layers"))
    assert clients.loc[(2, "msmt"), "weight"] == sample.clients(2)["weight"][2]
    assert rounds.loc[3, "seconds"] == 13.0
    assert layers.loc[(1, "duke", sample.LAYERS[1]), "bytes_values"] == sample.layers(1)["bytes_values"][1, 1]


@pytest.mark.parametrize("group", ["provenance", "client", "nothing"])
def test_another_group_is_refused_with_the_ones_there_are(finished, group):
    with open_run(finished) as run, pytest.raises(SchemaError, match="baseline, clients, layers, rounds"):
        run.to_xarray(group)


@pytest.mark.parametrize(("library", "ask"), [("xarray", "to_xarray"), ("pandas", "to_dataframe")])
def test_a_missing_library_names_the_extra(finished, monkeypatch, library, ask):
    def refuse(name, *arguments, **options):
        if name.split(".")[0] == library:
            raise ImportError(name)
        return original(name, *arguments, **options)

    original = builtins.__import__
    monkeypatch.setattr("importlib.import_module", refuse)
    with (
        open_run(finished) as run,
        pytest.raises(ImportError, match=rf"{library} is not installed.*fedmpi\[analysis\]"),
    ):
        getattr(run, ask)()


def test_h5dump_reads_it(finished, create):
    if shutil.which("h5dump") is None:
        pytest.skip("h5dump is not installed")
    working = create("working.h5")
    sample.write(working, 4)
    for path in (finished, working.path):
        command = [
            "h5dump",
            "-y",
            "-w",
            "0",
            "-d",
            "/rounds/seconds",
            "-d",
            "/clients/client",
            "-a",
            "/status",
            str(path),
        ]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "10, 11, 12, 13" in text
        assert '"market", "duke", "msmt"' in text
        assert ('"finished"' if path == finished else '"running"') in text
        whole = subprocess.run(["h5dump", str(path)], capture_output=True, text=True, check=False)
        assert (whole.returncode, whole.stderr) == (0, "")


def edit(path, **attributes):
    with h5py.File(path, "r+") as file:
        for name, value in attributes.items():
            del file.attrs[name]
            if value is not None:
                file.attrs[name] = value


def test_a_newer_major_is_refused_and_a_newer_minor_read(finished):
    major, minor = schema.SCHEMA_VERSION
    edit(finished, schema_version=f"{major}.{minor + 7}")
    with h5py.File(finished, "r+") as file:
        file["clients"].create_dataset("new_thing", data=np.zeros((4, 3)))
    with open_run(finished) as run:
        assert run["clients/density"].shape == (4, 3)
    edit(finished, schema_version=f"{major + 1}.0")
    with pytest.raises(
        SchemaError, match=rf"run.h5: schema {major + 1}.0, but this fedmpi reads up to {major}.x; upgrade"
    ):
        open_run(finished)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"schema": "h5md"}, "not a run file .schema 'h5md'"),
        ({"schema": None}, "not a run file .schema None"),
        ({"committed_rounds": None}, "not a run file"),
        ({"schema_version": "one"}, "must be MAJOR.MINOR, not 'one'"),
        ({"schema_version": 1.0}, "must be MAJOR.MINOR"),
    ],
)
def test_other_files_are_refused(finished, attributes, words):
    edit(finished, **attributes)
    with pytest.raises(SchemaError, match=words):
        open_run(finished)


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", bytes(5000)])
def test_garbage_is_refused(tmp_path, content):
    (tmp_path / "run.h5").write_bytes(content)
    with pytest.raises(SchemaError, match=r"run\.h5: not a whole HDF5 file"):
        open_run(tmp_path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.9999])
def test_a_cut_file_is_refused(finished, share):
    content = finished.read_bytes()
    finished.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SchemaError, match=r"run\.h5: not a whole HDF5 file"):
        open_run(finished)


def test_a_flipped_bit_in_the_data_of_a_finished_run_is_an_error_by_name(finished):
    content = bytearray(finished.read_bytes())
    with h5py.File(finished) as file:
        info = file["clients/density"].id.get_chunk_info(0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        place, bit = info.byte_offset + rng.integers(info.size), 1 << rng.integers(8)
        content[place] ^= bit
        finished.write_bytes(content)
        with open_run(finished) as run, pytest.raises(SchemaError, match="clients/density is damaged"):
            run["clients/density"]
        content[place] ^= bit


def test_a_file_without_its_groups_is_refused(tmp_path):
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file.attrs.update({"schema": schema.SCHEMA_NAME, "schema_version": "1.0", "committed_rounds": 3})
    with pytest.raises(SchemaError, match="its header is damaged"):
        open_run(tmp_path)
