"""Exported models: loaded again by other means than ours, they are the run's models."""

import json

import numpy as np
import pytest
import safetensors
import torch
from click.testing import CliRunner
from mpi4py import MPI
from safetensors.torch import load_file

from fedmpi import exporting, packed
from fedmpi.cli import cli
from fedmpi.console import View
from fedmpi.errors import ConfigError, DataError
from fedmpi.train import train
from tests.tiny import reader, tiny_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a finished run whose clients have pruned half of their weights."""
    from fedmpi.federated import learner

    folder = tmp_path_factory.mktemp("export")
    config = reader(folder)("pruning.step=0.6", "crr.enabled=false")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "initial_model", tiny_model)
        train(MPI.COMM_SELF, config, folder / "run", View(progress=False))
    return folder / "run"


@pytest.fixture
def export(run, tiny_net, tmp_path):
    def write(form, client="prid", *, sparse=False):
        out = tmp_path / f"model-{sparse}.{form}"
        return exporting.export(run, client, form, out, sparse=sparse)

    return write


def own(run, client="prid"):
    return load_file(run / ("global.safetensors" if client == "global" else f"clients/{client}.safetensors"))


@pytest.mark.parametrize("client", ["prid", "global"])
def test_safetensors_holds_the_run_s_tensors_and_says_what_they_are(export, run, client):
    done = export("safetensors", client)
    tensors = load_file(done.path)
    for name, tensor in own(run, client).items():
        assert torch.equal(tensors[name], tensor)
    with safetensors.safe_open(done.path, "np") as file:
        facts = file.metadata()
    assert facts["client"] == client
    assert facts["input"].startswith("float32[n, 3, 32, 16], RGB")
    assert json.loads(facts["mean"]) == [0.485, 0.456, 0.406]
    assert done.difference == 0


def test_torch_loads_without_trusting_the_file(export, run):
    done = export("torch")
    content = torch.load(done.path, weights_only=True)
    assert content["description"]["client"] == "prid"
    for name, tensor in own(run).items():
        assert torch.equal(content["state_dict"][name], tensor)


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_sparse_is_smaller_and_comes_back_whole(export, run, form):
    dense, sparse = export(form), export(form, sparse=True)
    state = exporting.load_exported(sparse.path)
    assert state.keys() == exporting.load_exported(dense.path).keys()
    for name, tensor in own(run).items():
        assert torch.equal(state[name], tensor), name
    if form == "safetensors":
        stored = load_file(sparse.path)
        assert stored["second.weight.values"].numel() == int((own(run)["second.weight"] != 0).sum())
        assert sum(t.numel() * t.element_size() for t in stored.values()) < 0.75 * sparse.dense


def test_sparse_is_what_the_document_says(export, run):
    """Read with NumPy alone, as docs/export.md describes it."""
    stored = load_file(export("safetensors", sparse=True).path)
    bits = np.unpackbits(stored["first.weight.bitmap"].numpy(), bitorder="little")
    expected = own(run)["first.weight"].numpy()
    flat = np.zeros(expected.size, np.float32)
    flat[np.flatnonzero(bits)] = stored["first.weight.values"].numpy()
    np.testing.assert_array_equal(flat.reshape(stored["first.weight.shape"].tolist()), expected)


def test_onnx_gives_the_same_embeddings_for_any_number_of_images(export, run, tiny_config):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    done = export("onnx")
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    model = tiny_model(tiny_config())
    model.load_state_dict(own(run), strict=False)
    images = torch.from_numpy(np.random.default_rng(1).random((7, 3, 32, 16), np.float32))
    with torch.inference_mode():
        expected = model.eval()(images).numpy()
    (embeddings,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(embeddings, expected, atol=1e-4 * np.abs(expected).max())
    assert session.get_modelmeta().custom_metadata_map["client"] == "prid"


class TestRefusals:
    def test_unknown_client(self, export):
        with pytest.raises(ConfigError, match="has no client 'duke'; there are global, ilids, prid"):
            export("torch", "duke")

    def test_nothing_is_overwritten(self, export):
        export("torch")
        with pytest.raises(ConfigError, match="never overwritten"):
            export("torch")

    def test_sparse_onnx(self, export):
        with pytest.raises(ConfigError, match="--sparse is for safetensors and torch"):
            export("onnx", sparse=True)

    def test_an_unfinished_run(self, run, tmp_path, tiny_net):
        (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
        with pytest.raises(ConfigError, match="is not finished and has no models yet: fedmpi train --resume"):
            exporting.export(tmp_path, "global", "torch", tmp_path / "x")

    def test_without_onnx(self, export, monkeypatch, tmp_path):
        monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
        with pytest.raises(ConfigError, match=r"needs the extra: pip install 'fedmpi\[onnx\]'"):
            export("onnx")
        assert list(tmp_path.glob("model*")) == []

    def test_a_file_that_gives_other_embeddings_does_not_stay(self, export, monkeypatch, tmp_path):
        monkeypatch.setattr(
            exporting, "unpack_zeros", lambda t: {n: x * 1.001 if n[-6:] == "weight" else x for n, x in t.items()}
        )
        with pytest.raises(DataError, match="the exported model gives other embeddings"):
            export("safetensors")
        assert list(tmp_path.glob("model*")) == []


def test_the_command(run, tiny_net, tmp_path):
    done = CliRunner().invoke(cli, ["export", str(run), "--client", "ilids", "--sparse", "--out", str(tmp_path / "m")])
    assert done.exit_code == 0, done.output
    assert "% of dense), the same embeddings" in done.stdout


class TestPacking:
    def test_values_and_shapes_survive(self):
        tensors = {
            "a": torch.tensor([0.0, -0.0, 1.0, 0.0] * 50).reshape(10, 20),
            "b": torch.tensor([0.0, 1.0]),
            "c": torch.zeros(0, 3),
            "d": torch.zeros(3, 100),
        }
        back = packed.unpack_zeros(packed.pack_zeros(tensors))
        assert back.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(back[name].numpy(), tensor.numpy())
            assert back[name].shape == tensor.shape
        assert {"a.bitmap", "d.values", "b", "c"} <= packed.pack_zeros(tensors).keys()
