import multiprocessing

import h5py
import numpy as np
import pytest

from fedmpi.errors import FedmpiError, SchemaError
from fedmpi.record import RecordError, RunWriter, open_run, schema
from tests.record import sample


def assert_rounds(run, rounds):
    """Compare everything in the run with what the sample makes."""
    assert run.rounds == rounds
    tables = [sample.messages(r) for r in range(rounds)]
    for r in range(rounds):
        for group, given in {"clients": sample.clients(r), "layers": sample.layers(r)}.items():
            for name, value in given.items():
                np.testing.assert_array_equal(run[f"{group}/{name}"][r], value, err_msg=name)
        for name, value in sample.scalars(r).items():
            assert run[f"rounds/{name}"][r] == value
        up = tables[r][np.isin(tables[r]["direction"], [b"up", b"request"])]
        assert run["rounds/bytes_up"][r] == up["bytes"].sum() == sum_of(run, "bytes_up", r)
        assert run["rounds/mean_density"][r] == pytest.approx(sample.clients(r)["density"].mean())
    np.testing.assert_array_equal(run.messages, np.concatenate([sample.messages(0)[:0], *tables]))
    for group in ("rounds", "clients", "layers"):
        np.testing.assert_array_equal(run[f"{group}/round"], np.arange(rounds))


def sum_of(run, prefix, round):
    return sum(run[f"clients/{prefix}_{section}"][round].sum() for section in sample.SECTIONS)


@pytest.mark.parametrize("rounds", [None, 1, 2, 5])
def test_what_was_committed_is_read_back(create, rounds):
    """With chunks of one round every commit replaces the file, with five none after the first does."""
    writer = create(rounds=rounds)
    for r in range(5):
        assert writer.committed == r
        writer.commit(*sample.parts(r))
        with open_run(writer.path) as run:
            assert (run.status, run.stopped) == ("running", "")
            assert_rounds(run, r + 1)
    writer.close("finished")
    with open_run(writer.path) as run:
        assert (run.status, run.error, run.clients, run.layers) == ("finished", "", sample.CLIENTS, sample.LAYERS)
        assert run.stopped >= run.created > "2020"
        assert_rounds(run, 5)
    assert [p.name for p in writer.path.parent.iterdir()] == ["run.h5"]


def test_more_messages_than_prepared_for_still_fit(create):
    writer = create(rounds=3)
    tables = [np.tile(sample.messages(r), 40) for r in range(3)]
    for r, table in enumerate(tables):
        writer.commit(r, sample.scalars(r), sample.clients(r), sample.layers(r), table)
    writer.close("finished")
    with open_run(writer.path) as run:
        np.testing.assert_array_equal(run.messages, np.concatenate(tables))
        assert run["rounds/messages"].tolist() == [len(table) for table in tables]


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_left_out_has_its_default(create, packed):
    writer = create()
    writer.commit(*sample.parts(0))
    needed = {"weight": [1, 0, 0], "density": [1.0, 0.5, 0.0]}
    writer.commit(1, {"started": 1, "seconds": 2}, needed, {}, sample.messages(1)[:0])
    if packed:
        writer.close("finished")
    with open_run(writer.path) as run:
        assert np.isnan(run["clients/loss_kl"][1]).all()
        assert np.isnan(run["layers/density"][1]).all()
        assert np.isnan(run["rounds/mean_map"][1])
        assert run["clients/clusters"][1].tolist() == [-1, -1, -1]
        assert run["clients/crr_decision"][1].tolist() == [0, 0, 0]
        assert run["rounds/mean_density"][1] == 0.5
        assert run["rounds/bytes_up"][1] == run["rounds/messages"][1] == 0
        assert np.isnan(run["baseline/map"]).all()


def test_means_are_over_the_clients_that_have_a_value(create):
    values = sample.clients(0) | {"map": np.array([0.2, np.nan, 0.4])}
    with create() as writer:
        writer.commit(0, sample.scalars(0) | {"mean_rank1": 0.75}, values, sample.layers(0), sample.messages(0))
    with open_run(writer.path) as run:
        assert run["rounds/mean_map"][0] == pytest.approx(0.3)
        assert run["rounds/mean_rank1"][0] == 0.75


def test_no_layers_no_group(tmp_path):
    with RunWriter.create(tmp_path / "run.h5", ["a"], [], {}) as writer:
        values = {name: value[:1] for name, value in sample.clients(0).items()}
        writer.commit(0, sample.scalars(0), values, {}, sample.messages(0, 1))
    with open_run(tmp_path / "run.h5") as run:
        assert run.layers == ()
        assert not any(name.startswith("layers/") for name in run.names())


def test_a_run_without_rounds_closes(create):
    writer = create()
    writer.close("failed", "ValueError: no\n data")
    with open_run(writer.path) as run:
        assert (run.rounds, run.status, run.error) == (0, "failed", "ValueError: no data")
        assert run["clients/density"].shape == (0, 3)


def change(which, name, value):
    """Arguments of a commit with one entry changed, or taken out where value is None."""
    _, *groups, table = sample.parts(0)
    groups[which] = {key: item for key, item in (groups[which] | {name: value}).items() if item is not None}
    return 0, *groups, table


@pytest.mark.parametrize(
    ("which", "name", "value", "words"),
    [
        (0, "second", 1.0, "/rounds has no variable second; it has started"),
        (1, "denisty", [1, 1, 1], "/clients has no variable denisty"),
        (2, "loss", [1], "/layers has no variable loss"),
        (0, "seconds", None, "/rounds needs seconds"),
        (1, "weight", None, "/clients needs weight"),
        (1, "density", [1.0, 1.0], r"clients/density has shape \(2,\), not \(3,\)"),
        (1, "clusters", [1.5, 2.0, 3.0], "clients/clusters must be integers"),
        (1, "clusters", [2**40, 0, 0], "clients/clusters does not fit i4"),
        (1, "crr_decision", [0, 5, 0], "clients/crr_decision .* codes"),
        (1, "density", ["a", "b", "c"], "clients/density must be numbers"),
        (1, "bytes_up_values", [1, 2, 3], "clients/bytes_up_values is .* but the messages sum to"),
        (0, "bytes_up", 5, "rounds/bytes_up is 5, but the messages sum to"),
        (0, "messages", 6, "rounds/messages is set by the writer"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_written(create, which, name, value, words):
    writer = create()
    with pytest.raises(SchemaError, match=words):
        writer.commit(*change(which, name, value))
    assert writer.committed == 0
    writer.commit(*sample.parts(0))
    with open_run(writer.path) as run:
        assert_rounds(run, 1)


def test_byte_variables_may_be_given_when_they_agree(create):
    table = sample.messages(0)
    total = int(table["bytes"][table["direction"] == b"up"].sum())
    with create() as writer:
        writer.commit(0, sample.scalars(0) | {"bytes_up": total}, sample.clients(0), sample.layers(0), table)


@pytest.mark.parametrize("round", [-1, 1, 3])
def test_rounds_come_in_order(create, round):
    writer = create()
    writer.commit(*sample.parts(0))
    writer.commit(*sample.parts(1))
    with pytest.raises(SchemaError, match=f"round {round} cannot be committed now, 2 is the next"):
        writer.commit(round, *sample.parts(0)[1:])


def test_nothing_is_overwritten(finished, tmp_path):
    before = finished.read_bytes()
    with pytest.raises(SchemaError, match="exists already and is never overwritten"):
        RunWriter.create(finished, sample.CLIENTS, sample.LAYERS, {})
    assert finished.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


@pytest.mark.parametrize(
    ("clients", "layers", "words"), [([], [], "client names"), (["a", "a"], [], "client"), (["a"], [""], "layer names")]
)
def test_names_must_label(tmp_path, clients, layers, words):
    with pytest.raises(SchemaError, match=words):
        RunWriter.create(tmp_path / "run.h5", clients, layers, {})


def test_provenance_is_text(tmp_path):
    with pytest.raises(SchemaError, match="'seed' must be a text"):
        RunWriter.create(tmp_path / "run.h5", ["a"], [], {"seed": [3]})
    assert list(tmp_path.iterdir()) == []


def test_an_exception_is_kept_as_the_last_error(create):
    writer = create()
    writer.commit(*sample.parts(0))
    with pytest.raises(ZeroDivisionError), writer:
        _ = 1 / 0
    with open_run(writer.path) as run:
        assert (run.status, run.error) == ("failed", "ZeroDivisionError: division by zero")
        assert_rounds(run, 1)


def test_a_long_error_is_cut_between_characters(create):
    writer = create()
    writer.close("failed", "é" * 3000)
    with open_run(writer.path) as run:
        assert run.error == "é" * 1023


def test_a_closed_writer_says_so(create):
    writer = create()
    writer.close("finished")
    writer.close("failed", "too late")
    with pytest.raises(RecordError, match="closed or has failed"):
        writer.commit(*sample.parts(0))
    with open_run(writer.path) as run:
        assert run.status == "finished"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 3, 4])
def test_resume_cuts_and_goes_on(create, packed, kept):
    writer = create(rounds=3)
    writer.baseline({"map": [0.1, 0.2, 0.3]})
    sample.write(writer, 4)
    if packed:
        writer.close("failed", "killed")
    writer = RunWriter.reopen(writer.path, kept, {"host": "node2"}, rounds=6)
    with open_run(writer.path) as run:
        assert (run.status, run.error, run.stopped) == ("running", "", "")
        assert_rounds(run, kept)
    sample.write(writer, 6, start=kept)
    writer.close("finished")
    with open_run(writer.path) as run:
        assert_rounds(run, 6)
        assert run["baseline/map"].tolist() == [0.1, 0.2, 0.3]
        assert run.provenance == {"config": "seed: 1\n"}
        assert run.resumes == [{"host": "node2", "after_rounds": str(kept)}]


def test_resume_after_rounds_that_were_never_written_is_refused(finished):
    with pytest.raises(SchemaError, match="holds 4 committed rounds and cannot be resumed after 5"):
        RunWriter.reopen(finished, 5)
    with open_run(finished) as run:
        assert_rounds(run, 4)


def test_resume_of_a_newer_minor_is_refused_since_it_would_lose_data(finished):
    with h5py.File(finished, "r+") as file:
        file.attrs["schema_version"] = f"{schema.SCHEMA_VERSION[0]}.{schema.SCHEMA_VERSION[1] + 1}"
    with pytest.raises(SchemaError, match="upgrade to resume"):
        RunWriter.reopen(finished, 4)
    with open_run(finished) as run:
        assert_rounds(run, 4)


def reopen_elsewhere(path, answers):
    try:
        RunWriter.reopen(path, 1)
    except FedmpiError as error:
        answers.put(str(error))
    else:
        answers.put("reopened")


def test_a_second_writer_is_refused_until_the_first_ends(create):
    writer = create()
    writer.commit(*sample.parts(0))
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    for expected in ("another process writes this run", "reopened"):
        process = context.Process(target=reopen_elsewhere, args=(writer.path, answers))
        process.start()
        assert expected in answers.get(timeout=60)
        process.join()
        writer.close("finished")


def test_baseline_names_are_checked(create):
    with pytest.raises(SchemaError, match="/baseline has no variable mAP; it has map"):
        create().baseline({"mAP": [0, 0, 0]})
