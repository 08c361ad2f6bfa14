"""Complete runs with the tiny network in one process: what is in the folder, and that it is all the same story."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI
from safetensors.torch import load_file

from fedmpi.config import load_config
from fedmpi.console import View
from fedmpi.errors import ConfigError, DataError, DeviceError, LaunchError, TrainingError
from fedmpi.pruning import Decision
from fedmpi.record import open_run
from fedmpi.reid.datasets import load_client
from fedmpi.reid.features import Viewing
from fedmpi.reid.testing import evaluate
from fedmpi.train import train
from tests import mpi
from tests.tiny import CLIENTS, tiny_model, write_config

pytestmark = pytest.mark.usefixtures("tiny_net")

DRIVER = Path(__file__).with_name("driver.py")
SUMMARY_KEYS = {
    "map_before", "map_after", "rank1_before", "rank1_after", "bytes_up", "bytes_down", "bytes_dense", "saved",
    "seconds", "peak_rss_bytes", "global_sha256", "clients",
}  # fmt: skip


@pytest.fixture
def run(tiny_config, tmp_path):
    """Return a function that trains with some changes and returns the run's folder."""
    count = 0

    def start(*overrides: str) -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / f"run{count}"
        train(MPI.COMM_SELF, tiny_config(*overrides), folder, View(progress=False))
        return folder

    return start


def files(folder: Path) -> dict[str, str]:
    """Return the sha256 of every model file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def sets(*overrides: str) -> list[str]:
    """Return overrides as arguments of the command line."""
    return [word for override in overrides for word in ("--set", override)]


def load_summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


class TestFolder:
    def test_contents(self, run, tiny_config):
        folder = run()
        found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        models = [f"clients/{name}.safetensors" for name in sorted(CLIENTS)]
        assert found == sorted([*models, "config.yaml", "global.safetensors", "run.h5", "summary.json"])
        assert load_config(folder / "config.yaml") == tiny_config()

    def test_summary_and_record_tell_the_same(self, run):
        folder = run("federation.rounds=3", "crr.tau1=1")
        summary = load_summary(folder)
        assert set(summary) >= SUMMARY_KEYS
        with open_run(folder) as record:
            assert (record.status, record.rounds, record.clients) == ("finished", 3, CLIENTS)
            assert summary["map_before"] == pytest.approx(record["baseline/map"].mean())
            assert summary["rank1_before"] == pytest.approx(record["baseline/rank1"].mean())
            assert summary["map_after"] == pytest.approx(record["clients/map"][-1].mean())
            assert summary["rank1_after"] == pytest.approx(record["clients/rank1"][-1].mean())
            assert summary["density"] == pytest.approx(record["clients/density"][-1].mean())
            for name in ("bytes_up", "bytes_down", "bytes_evaluation"):
                assert summary[name] == record[f"rounds/{name}"].sum()
            dense = record["rounds/bytes_dense_up"].sum() + record["rounds/bytes_dense_down"].sum()
            assert summary["bytes_dense"] == dense
            assert summary["saved"] == pytest.approx(1 - (summary["bytes_up"] + summary["bytes_down"]) / dense)
            assert 0.1 < summary["saved"] < 0.5
            assert 0 < record["rounds/seconds"].sum() < summary["seconds"]
            messages = record.messages
            for c, name in enumerate(CLIENTS):
                client = summary["clients"][name]
                paid = messages[(messages["client"] == c) & (messages["direction"] != b"eval")]
                assert client["bytes"] == paid["bytes"].sum()
                assert client["bytes_dense"] == paid["dense_bytes"].sum()
                assert client["saved"] == pytest.approx(1 - client["bytes"] / client["bytes_dense"])
                for key, variable in (("map", "map"), ("rank1", "rank1")):
                    assert client[f"{key}_after"] == record[f"clients/{variable}"][-1, c]
                    assert client[f"{key}_before"] == record[f"baseline/{variable}"][c]
                assert client["density"] == record["clients/density"][-1, c]
        assert summary["peak_rss_bytes"] > 50e6
        assert summary["rounds"] == 3

    def test_sha256_is_that_of_the_file(self, run):
        folder = run("federation.rounds=1")
        assert load_summary(folder)["global_sha256"] == files(folder)["global.safetensors"]

    @pytest.mark.parametrize("text", ["Open MPI v5.0.11, package: x\0", "MPICH Version:      5.0.2\nABI: 17\0"])
    def test_the_mpi_library_s_own_words_are_recorded(self, run, monkeypatch, text):
        """Open MPI ends them with a NUL, which HDF5 refuses."""
        monkeypatch.setattr(MPI, "Get_library_version", lambda: text)
        with open_run(run("federation.rounds=1")) as record:
            assert record.provenance["mpi_library"] == text.split("\n")[0].rstrip("\0")

    def test_no_temporary_files_remain(self, run):
        assert list(run("federation.rounds=1").rglob(".*")) == []

    def test_a_run_that_failed_says_so_and_has_no_summary(self, run, tmp_path, monkeypatch):
        from fedmpi.federated.client import Client

        original = Client.train

        def fail(client, state, received, round, log, room=None):
            if round == 1:
                raise ZeroDivisionError("boom")
            return original(client, state, received, round, log, room)

        monkeypatch.setattr(Client, "train", fail)
        with pytest.raises(ZeroDivisionError):
            run("federation.rounds=3")
        folder = tmp_path / "run1"
        with open_run(folder) as record:
            assert (record.status, record.rounds) == ("failed", 1)
            assert "boom" in record.error
            assert record["clients/map"].shape == (1, 2)
        assert not (folder / "summary.json").exists()
        assert files(folder) == {}


class TestModels:
    @pytest.fixture
    def trained(self, run, tiny_config):
        overrides = ("federation.rounds=3", "crr.enabled=false", "pruning.step=0.3")
        return run(*overrides), tiny_config(*overrides)

    def test_score_what_was_recorded(self, trained):
        folder, config = trained
        viewing = Viewing(32, 16, 128, 0, torch.device("cpu"))
        summary = load_summary(folder)
        for c, name in enumerate(CLIENTS):
            data = load_client(config.data, config.run.seed, c)
            for file, key in ((f"clients/{name}", "clients/map"), ("global", "clients/global_map")):
                model = tiny_model(config)
                missing, unexpected = model.load_state_dict(load_file(folder / f"{file}.safetensors"), strict=False)
                assert unexpected == []
                assert [m for m in missing if not m.endswith("num_batches_tracked")] == []
                score = evaluate(model, data, viewing, ranks=(1, 5))
                with open_run(folder) as record:
                    assert score.mean_ap == pytest.approx(record[key][-1, c], abs=1e-6)
            assert summary["clients"][name]["map_after"] != summary["clients"][name]["map_before"]

    def test_personal_models_are_the_global_one_without_what_is_pruned(self, trained):
        folder, _ = trained
        whole = load_file(folder / "global.safetensors")
        for c, name in enumerate(CLIENTS):
            own = load_file(folder / f"clients/{name}.safetensors")
            assert own.keys() == whole.keys()
            zeros = 0
            for key, tensor in own.items():
                kept = tensor != 0
                assert torch.equal(tensor[kept], whole[key][kept])
                if tensor.ndim >= 2:
                    zeros += int((~kept).sum())
                else:
                    assert torch.equal(tensor, whole[key])
            prunable = sum(t.numel() for t in own.values() if t.ndim >= 2)
            with open_run(folder) as record:
                assert zeros / prunable == pytest.approx(1 - record["clients/density"][-1, c])
                assert record["clients/density"][-1, c] == pytest.approx(0.5, abs=2e-3)  # the target

    def test_layers_are_recorded_as_they_are(self, trained):
        folder, _ = trained
        with open_run(folder) as record:
            own = load_file(folder / f"clients/{CLIENTS[0]}.safetensors")
            densities = dict(zip(record.layers, record["layers/density"][-1, 0], strict=True))
        assert densities["neck.bias"] == 1.0
        for name in ("first.weight", "second.weight", "linear.weight"):
            assert densities[name] == pytest.approx(float((own[name] != 0).double().mean()), abs=1e-6)


class TestBytes:
    def test_a_dense_run_sends_what_dense_costs(self, run):
        folder = run("pruning.enabled=false")  # CRR is on, but there is nothing that it could give back
        with open_run(folder) as record:
            assert set(np.unique(record["clients/crr_decision"][...])) == {Decision.OFF}
            messages = record.messages
            assert set(messages["direction"]) == {b"down", b"up", b"eval"}
            np.testing.assert_array_equal(messages["bytes"], messages["dense_bytes"])
            n = sum(t.numel() for t in tiny_model(load_config(folder / "config.yaml")).parameters())
            buffers = 2 * 8 + 2 * 16
            np.testing.assert_array_equal(messages["values"], 4 * n)
            np.testing.assert_array_equal(messages["mask"], 0)
            expected = {b"down": 128 + 4 * n + 4 * buffers, b"up": 128 + 4 * n + 4 * buffers + 8 * 3}
            for direction, size in expected.items():
                assert set(messages["bytes"][messages["direction"] == direction]) == {size}
        assert load_summary(folder)["saved"] == 0.0

    def test_dense_equivalents_of_a_pruned_run_are_the_bytes_of_the_dense_run(self, run):
        dense = run("pruning.enabled=false")
        pruned = run("crr.tau1=1")
        with open_run(dense) as a, open_run(pruned) as b:
            for direction in (b"up", b"down"):
                whole, less = (record.messages[record.messages["direction"] == direction] for record in (a, b))
                assert less["dense_bytes"].sum() == whole["bytes"].sum()
                np.testing.assert_array_equal(less["dense_bytes"], whole["bytes"])
            assert b.messages["bytes"].sum() < a.messages["bytes"].sum()
            requests = b.messages[b.messages["direction"] == b"request"]
            assert requests["dense_bytes"].sum() == 0
            assert requests["bytes"].tolist() == [128] * 4
        assert load_summary(pruned)["bytes_dense"] == load_summary(dense)["bytes_dense"]

    def test_what_is_cut_less_often_costs_nothing_more(self, run):
        fine, coarse = (run("crr.tau1=1", f"comm.segment_mb={size}") for size in (0.0003, 1.0))
        assert files(fine) == files(coarse)
        a, b = load_summary(fine), load_summary(coarse)
        assert (a["bytes_up"], a["bytes_down"]) == (b["bytes_up"], b["bytes_down"])


class TestRepeatability:
    def test_twice_in_a_row_and_with_another_seed(self, run):
        first, again, other = run("crr.tau1=1"), run("crr.tau1=1"), run("crr.tau1=1", "run.seed=1")
        assert files(first) == files(again)
        assert len(set(files(first).values())) == 3
        assert files(first)["global.safetensors"] != files(other)["global.safetensors"]

    def test_output_keys_change_nothing(self, run):
        assert files(run()) == files(run("run.name=other", "evaluation.every=2", "record.layers=false"))

    def test_the_callers_settings_of_torch_are_left_alone(self, run):
        torch.use_deterministic_algorithms(False)
        state = torch.random.get_rng_state()
        numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002 - just because it must not be used
        run("federation.rounds=1", "compute.threads=2")
        assert torch.get_num_threads() == 1
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.equal(torch.random.get_rng_state(), state)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


class TestRefusals:
    def test_a_folder_that_holds_something(self, tiny_config, tmp_path):
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "precious").write_text("data")
        with pytest.raises(ConfigError, match="old is not empty; a run never overwrites another"):
            train(MPI.COMM_SELF, tiny_config(), tmp_path / "old", View(progress=False))
        assert [p.name for p in (tmp_path / "old").iterdir()] == ["precious"]

    def test_singletons(self, run, monkeypatch, tmp_path):
        monkeypatch.setenv("PMI_SIZE", "4")
        with pytest.raises(LaunchError, match="4 separate runs"):
            run()
        assert not (tmp_path / "run1").exists()

    def test_missing_data(self, run, tmp_path):
        with pytest.raises(DataError, match=r"data\.root: .*nowhere is not a folder"):
            run(f"data.root={tmp_path}/nowhere", "data.clients=[]")
        assert not (tmp_path / "run1").exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_no_gpu(self, run):
        with pytest.raises(DeviceError, match=r"compute\.device is cuda, but rank 0 sees no GPU"):
            run("compute.device=cuda")

    def test_nan_loss(self, run, tmp_path):
        with pytest.raises(TrainingError) as caught:
            run("loss.temperature=1e-40")
        assert caught.value.__notes__[0].startswith("local training: client 0: the loss is not finite in round 0")
        assert open_run(tmp_path / "run1").status == "failed"


class TestIdleClient:
    def test_goes_on_and_is_recorded(self, run):
        """Everything is noise to a demanding clustering: nothing is learned, nothing breaks."""
        folder = run("clustering.min_samples=1000", "pruning.enabled=false", "crr.enabled=false")
        with open_run(folder) as record:
            assert (record["clients/clusters"] == 0).all()
            assert np.isnan(record["clients/loss_total"]).all()
            np.testing.assert_array_equal(record["clients/map"][-1], record["baseline/map"])
            np.testing.assert_allclose(record["clients/weight"], 0.5)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return a function that runs on so many ranks, once, with recovery happening, and returns where everything is."""
    done: dict[tuple[int | str, ...], Path] = {}

    def on(
        ranks: int, values: str = "auto", downlink: str = "messages", uplink: str = "messages", *accidents: str
    ) -> Path:
        plan = ranks, values, downlink, uplink, *accidents
        if plan not in done:
            folder = done[plan] = tmp_path_factory.mktemp(f"ranks{ranks}{values}")
            keys = (f"wire.values={values}", f"comm.downlink={downlink}", f"comm.uplink={uplink}")
            changes = sets("federation.rounds=4", "pruning.target=0.9", *keys)
            command = ["train", write_config(folder), "--out", folder / "run", *changes]
            argv = [DRIVER, "count-bytes", "script-probe", "two-nodes", *accidents, "--", *command]
            mpi.succeed(ranks, argv, env={"DRIVER_OUT": str(folder)})
        return done[plan]

    return on


@pytest.mark.mpi
@mpi.needs_mpirun
class TestRanks:
    """The same run as a job of several ranks, byte by byte."""

    @pytest.mark.parametrize("ranks", [2, 3])
    def test_same_bits_as_in_one_process(self, job, ranks):
        assert files(job(ranks) / "run") == files(job(1) / "run")
        with open_run(job(ranks) / "run") as many, open_run(job(1) / "run") as one:
            for name in (
                "clients/crr_decision",
                "clients/map",
                "clients/loss_total",
                "clients/weight",
                "rounds/bytes_up",
            ):
                np.testing.assert_array_equal(many[name], one[name])
            assert [str(rank) for rank in many.provenance["client_ranks"]] == ["1", "1" if ranks == 2 else "2"]

    @pytest.mark.parametrize("ranks", [2, 3])
    def test_recorded_bytes_are_those_handed_to_mpi(self, job, ranks):
        sent = [json.loads((job(ranks) / f"sent-{rank}.json").read_text()) for rank in range(ranks)]
        with open_run(job(ranks) / "run") as record:
            messages = record.messages
        assert set(messages["direction"]) == {b"down", b"up", b"request", b"recover", b"eval"}
        assert messages["values"][messages["direction"] == b"recover"].sum() > 0
        down = np.isin(messages["direction"], [b"down", b"recover", b"eval"])
        assert sent[0] == messages["bytes"][down].sum()
        assert sum(sent[1:]) == messages["bytes"][~down].sum()
        if ranks == 3:
            for client in (0, 1):
                assert sent[1 + client] == messages["bytes"][~down & (messages["client"] == client)].sum()

    def test_a_node_that_merges_first_sends_one_update_for_all_of_its_clients(self, job):
        """The first client is the leader's own, so its values do not travel; the second one's go to the leader."""
        folder = job(3, uplink="hierarchical")
        sent = [json.loads((folder / f"sent-{rank}.json").read_text()) for rank in range(3)]
        with open_run(folder / "run") as record, open_run(job(3) / "run") as plain:
            messages, losses = record.messages, (record["clients/loss_total"], plain["clients/loss_total"])
        down = np.isin(messages["direction"], [b"down", b"recover", b"eval"])
        weights = 4 * 8 * 3  # four rounds, to the leader: of two clients, and a flag
        assert sent[0] == messages["bytes"][down].sum() + weights
        for client in (0, 1):
            assert sent[1 + client] == messages["bytes"][~down & (messages["client"] == client)].sum()
        up, means = (messages[messages["direction"] == way] for way in (b"up", b"means"))
        assert set(means["client"]) == {0}
        assert (up["values"][up["client"] == 0] == 0).all()
        assert (means["values"] >= up["values"][up["client"] == 1]).all()
        np.testing.assert_array_equal(losses[0][0], losses[1][0])  # before anything was merged
        assert np.isfinite(losses[0]).all()

    @pytest.mark.parametrize("values", ["lossless", "bf16"])
    def test_coded_bytes_are_those_handed_to_mpi_in_whatever_number_of_ranks(self, job, values):
        folder, alone = job(3, values), job(1, values)
        sent = [json.loads((folder / f"sent-{rank}.json").read_text()) for rank in range(3)]
        with open_run(folder / "run") as many, open_run(alone / "run") as one:
            np.testing.assert_array_equal(many.messages["bytes"], one.messages["bytes"])
            np.testing.assert_array_equal(many.messages["coding"], one.messages["coding"])
            messages = many.messages
        assert sum(sent) == messages["bytes"].sum()
        assert files(folder / "run") == files(alone / "run")
        codings = {way: set(messages["coding"][messages["direction"] == way]) for way in (b"up", b"down", b"recover")}
        if values == "bf16":
            assert codings == {b"up": {b"bf16"}, b"down": {b"bf16"}, b"recover": {b"bf16"}}
        else:
            assert codings == {b"up": {b"delta"}, b"down": {b"delta"}, b"recover": {b"lossless"}}

    def test_lossless_coding_changes_bytes_and_no_bit_of_any_model(self, job):
        assert files(job(3, "lossless") / "run") == files(job(3) / "run")
        assert files(job(3, "bf16") / "run") != files(job(3) / "run")
        with open_run(job(3, "lossless") / "run") as coded, open_run(job(3) / "run") as raw:
            assert set(raw.messages["coding"]) == {b"raw"}  # on one host memory is faster than any coder
            for way, ratio in ((b"up", 0.75), (b"down", 0.75), (b"eval", 0.95)):
                less, whole = (r.messages["values"][r.messages["direction"] == way].sum() for r in (coded, raw))
                assert less <= ratio * whole

    @pytest.mark.parametrize("ranks", [2, 3])
    def test_values_taken_from_shared_memory_change_nothing_that_is_recorded(self, job, ranks):
        folder = job(ranks, downlink="shared")
        assert files(folder / "run") == files(job(3) / "run")
        with open_run(folder / "run") as taken, open_run(job(3) / "run") as sent:
            names = [name for name in sent.messages.dtype.names if name not in {"start", "seconds"}]
            for name in names:
                np.testing.assert_array_equal(taken.messages[name], sent.messages[name])
            messages = taken.messages
        down = np.isin(messages["direction"], [b"down", b"recover", b"eval"])
        handed = json.loads((folder / "sent-0.json").read_text())
        assert handed == (messages["bytes"] - messages["values"])[down].sum()

    @pytest.mark.parametrize("how", ["staged", "direct"])
    def test_models_that_move_to_and_from_a_gpu_are_the_same(self, job, how):
        """The GPU is a pretended one; with ``direct``, MPI writes into its memory what clients are sent each round."""
        folder = job(3, "auto", "messages", "messages", how)
        assert files(folder / "run") == files(job(3) / "run")
        with open_run(folder / "run") as moved, open_run(job(3) / "run") as plain:
            for column in ("round", "client", "direction", "bytes"):
                np.testing.assert_array_equal(moved.messages[column], plain.messages[column])
            np.testing.assert_array_equal(moved["clients/norm"], plain["clients/norm"])

    def test_lossless_values_are_messages_whatever_is_shared(self, job):
        shared, messages = (job(3, "lossless", downlink) for downlink in ("shared", "messages"))
        assert (shared / "sent-0.json").read_text() == (messages / "sent-0.json").read_text()
        assert files(shared / "run") == files(messages / "run")

    def test_in_one_process_nothing_is_handed_to_mpi_but_the_record_is_the_same(self, job):
        assert json.loads((job(1) / "sent-0.json").read_text()) == 0
        with open_run(job(1) / "run") as one, open_run(job(3) / "run") as many:
            for column in (
                "round",
                "client",
                "direction",
                "header",
                "mask",
                "values",
                "buffers",
                "scalars",
                "dense_bytes",
            ):
                np.testing.assert_array_equal(one.messages[column], many.messages[column])


@pytest.mark.mpi
@pytest.mark.slow
@mpi.needs_mpirun
def test_a_real_network_gives_the_same_bits_on_three_ranks(tmp_path):
    """The command as a user gives it, with a ResNet-18, on 1 and 3 ranks."""
    changes = sets("model.arch=resnet18", "crr.tau1=1", "comm.segment_mb=1")
    shas = []
    for ranks in (None, 3):
        out = tmp_path / f"run{ranks}"
        mpi.succeed(ranks, ["-m", "fedmpi", "train", write_config(tmp_path), "--out", out, *changes])
        shas.append(files(out))
        assert load_summary(out)["ranks"] == (ranks or 1)
    assert shas[0] == shas[1]
