"""``fedmpi evaluate``: the scores of a run's own models, and of models on clients that they have never seen."""

import json
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from mpi4py import MPI

from fedmpi.cli import cli
from fedmpi.config import load_config
from fedmpi.console import View
from fedmpi.errors import ConfigError, DataError
from fedmpi.rawdata.facts import fact
from fedmpi.rawdata.prepare import prepare
from fedmpi.reid.backbone import build_backbone
from fedmpi.train import train
from tests.rawdata import releases
from tests.tiny import write_config

CHANGES = ["model.arch=resnet18", "federation.rounds=1", "data.synthetic.identities=0.2", "crr.enabled=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run with a real ResNet-18 and two drawn clients."""
    folder = tmp_path_factory.mktemp("run")
    train(MPI.COMM_SELF, load_config(write_config(folder), CHANGES), folder / "out", View(progress=False))
    return folder / "out"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two clients that took no part: VIPeR and Market-1501 in small."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("viper", "market"):
        releases.RELEASES[name](folder / name)
        prepare(folder / name, fact(name), folder / "root")
    return folder / "root"


@pytest.fixture(autouse=True)
def settings_of_torch():
    """Put back what an evaluation in this process sets."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def evaluate(*words):
    result = CliRunner().invoke(cli, ["evaluate", *map(str, words)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def scores(*words):
    return json.loads(evaluate(*words, "--json"))


def test_the_scores_of_the_run_itself(run):
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["clients"]) == ["prid", "ilids"]
    for name, entry in summary["clients"].items():
        again = scores(run / f"clients/{name}.safetensors", "--client", name)
        assert list(again["clients"]) == [name]
        assert again["clients"][name]["map"] == pytest.approx(entry["map_after"], abs=1e-12)
        assert again["clients"][name]["rank1"] == pytest.approx(entry["rank1_after"], abs=1e-12)
    whole = scores(run / "global.safetensors")
    assert list(whole["clients"]) == ["prid", "ilids"]
    assert whole["model_sha256"] == summary["global_sha256"]
    assert whole["arch"] == "resnet18"


def test_clients_that_took_no_part(run, root):
    model = run / "global.safetensors"
    both = scores(model, "--data", root)
    assert list(both["clients"]) == ["Market", "viper"]
    assert (both["clients"]["Market"]["queries"], both["clients"]["viper"]["queries"]) == (18, 6)
    assert scores(model, "--data", root, "--client", "viper")["clients"] == {"viper": both["clients"]["viper"]}
    assert all(0 < client["map"] <= 1 for client in both["clients"].values())


def test_variants_are_named_and_counted(run):
    words = (run / "global.safetensors", "--client", "prid")
    plain = scores(*words)
    assert plain["protocol"] == "cosine, AP mean, unmatched skip, no flip, no re-ranking"
    for change, name in (("ap=trapezoid", "AP trapezoid"), ("flip=true", ", flip,"), ("rerank.enabled=true", "k1=20")):
        other = scores(*words, "--set", f"evaluation.protocol.{change}")
        assert name in other["protocol"]
        assert other["clients"] != plain["clients"]


def test_text_and_file(run, root, tmp_path):
    out = tmp_path / "scores.json"
    output = evaluate(run / "global.safetensors", "--data", root, "--out", out)
    content = json.loads(out.read_text())
    lines = {line.split()[0]: line.split() for line in output.splitlines()}
    for name, entry in content["clients"].items():
        assert lines[name][1:4] == [str(entry["queries"]), str(entry["skipped"]), f"{100 * entry['map']:.1f}"]
    assert content["protocol"] in output
    assert content["model"] == "global.safetensors"
    assert str(root) not in output + out.read_text()
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        evaluate(run / "global.safetensors", "--data", root, "--out", out)


def test_a_file_without_a_run(root, tmp_path):
    """Then the shipped fedklpr says how to look at images; the architecture comes from the file."""
    net = build_backbone("resnet18", seed=3)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "mine.safetensors")
    words = ("--data", root, "--client", "viper", "--set", "data.height=32", "--set", "data.width=16")
    first = scores(tmp_path / "mine.safetensors", *words)
    torch.save({"model": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "mine.pth")
    assert scores(tmp_path / "mine.pth", *words)["clients"] == first["clients"]


class Evil:
    def __reduce__(self):
        return print, ("EVIL CODE RAN",)


def test_mistakes_leave_with_one_line(run, root, tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), tmp_path / "evil2.pth")
    (tmp_path / "half.safetensors").write_bytes((run / "global.safetensors").read_bytes()[:9999])
    for words, message in (
        ([tmp_path / "evil.pth"], "not a readable weight file"),
        ([tmp_path / "evil2.pth"], "not a readable weight file"),
        ([tmp_path / "half.safetensors"], "not a readable weight file"),
        ([tmp_path / "none.pth"], "no such weight file"),
        ([run / "global.safetensors", "--data", tmp_path], "no client found"),
        ([run / "global.safetensors", "--data", root, "--client", "duke"], "no client duke"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            evaluate(*words)
        assert "\n" not in str(caught.value)
    command = [sys.executable, "-m", "fedmpi", "evaluate", str(tmp_path / "evil2.pth")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert "EVIL" not in done.stderr
