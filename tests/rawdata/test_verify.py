"""``fedmpi data verify`` on clients that are good, damaged, leaking, incomplete; and the three commands themselves."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from PIL import Image

from fedmpi.cli import cli
from fedmpi.errors import DataError
from fedmpi.rawdata import facts, verify
from fedmpi.rawdata.facts import Count, fact
from fedmpi.rawdata.prepare import prepare
from tests import mpi
from tests.rawdata import releases
from tests.rawdata.releases import RELEASES
from tests.test_train import DRIVER


@pytest.fixture
def small(monkeypatch):
    """Let the published Market-1501 be our small one."""
    entry = fact("market")
    changed = replace(entry, train=Count(6, 36), query=Count(6, 18), gallery=Count(7, 42))
    table = tuple(changed if e is entry else e for e in facts.FACTS)
    monkeypatch.setattr(facts, "FACTS", table)
    monkeypatch.setattr(verify, "FACTS", table)


@pytest.fixture
def market(tmp_path, small):
    releases.market(tmp_path / "raw")
    prepare(tmp_path / "raw", fact("market"), tmp_path / "root", way="copy")
    return tmp_path / "root/Market"


def data(*words):
    """Run ``fedmpi data ...``; return (exit code, output)."""
    result = CliRunner().invoke(cli, ["data", *map(str, words)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.output


def findings(root, *words):
    """Return the findings of the only client as {text: (level, examples)}."""
    code, output = data("verify", root, "--json", *words)
    content = json.loads(output)
    (client,) = content["clients"]
    assert content["ok"] == client["ok"] == (code == 0)
    return {finding["text"]: (finding["level"], finding["examples"]) for finding in client["findings"]}


def one(found, part, level):
    """Return the examples of the only finding of this level, whose text has `part`."""
    texts = [text for text, (its, _) in found.items() if its == level]
    assert len(texts) == 1, found
    assert part in texts[0]
    return found[texts[0]][1]


def test_a_good_client(market):
    assert findings(market.parent) == {}
    code, output = data("verify", market.parent)
    assert code == 0
    assert "Market (market): good" in output
    assert output.count("published") == 3
    assert "cameras   1, 2, 3, 4, 5, 6" in output


@pytest.mark.parametrize("name", RELEASES)
def test_small_releases_differ_from_the_published_sets_in_counts_alone(tmp_path, name):
    RELEASES[name](tmp_path / "raw")
    prepare(tmp_path / "raw", fact(name), tmp_path / "root")
    errors = [text for text, (level, _) in findings(tmp_path / "root").items() if level == "error"]
    counted = [text for text in errors if "published are" in text]
    assert counted
    assert [text for text in errors if text not in counted and "no image of camera" not in text] == []


def test_counts(market):
    next((market / "pytorch/query").rglob("*.jpg")).unlink()
    found = findings(market.parent)
    assert found["query: 6 identities / 17 images, published are 6 / 18"][0] == "error"
    assert "1 files of manifest.json are missing" in found


def test_another_number_of_images_is_noted_at_once(tmp_path):
    releases.duke(tmp_path / "raw")  # looks like Market-1501, and is not
    words = ("prepare", tmp_path / "raw", "--dataset", "market", "--out", tmp_path / "root")
    assert f"note: published are 36036 images; is {tmp_path / 'raw'} the whole release of market?" in data(*words)[1]


def test_one_client_can_be_verified_beside_a_broken_one(market):
    (market.parent / "broken/pytorch/query").mkdir(parents=True)
    assert data("verify", market.parent, "--client", "Market")[0] == 0
    for words in (["--client", "broken"], []):
        with pytest.raises(DataError, match="broken/pytorch/train_all is missing"):
            data("verify", market.parent, *words)


def test_missing_camera(market):
    for file in market.rglob("*_c5s*.jpg"):  # a distractor is all that camera 5 sees
        file.unlink()
    assert findings(market.parent)["no image of camera 5 of 6"][0] == "error"


def test_unreadable_and_changed(market):
    file = next((market / "pytorch/train_all/0003").iterdir())
    file.write_bytes(file.read_bytes()[:300])
    found = findings(market.parent)
    assert found["1 of 96 images cannot be read"][1][0].startswith(f"pytorch/train_all/0003/{file.name}: ")
    assert found["1 files have changed"] == ("error", [f"pytorch/train_all/0003/{file.name}"])
    assert len(found) == 2


def test_copies_within_and_across(market):
    (market / "manifest.json").unlink()
    train, test = (sorted((market / f"pytorch/{s}").rglob("*.jpg")) for s in ("train_all", "query"))
    test[0].write_bytes(train[0].read_bytes())
    train[1].write_bytes(train[2].read_bytes())
    found = findings(market.parent)
    assert found["1 images are byte for byte in both training and test"][0] == "error"
    assert found["1 images exist more than once, byte for byte"][0] == "warning"


def test_identities_in_training_and_test(market):
    source = market / "pytorch/gallery/0009"
    (market / "pytorch/train_all/0001").rename(market / "pytorch/train_all/0009")
    assert source.is_dir()
    assert findings(market.parent)["1 identities are in both training and test"] == ("error", ["9"])


def test_queries_without_a_match(market):
    for file in (market / "pytorch/gallery/0008").iterdir():
        file.unlink()
    found = findings(market.parent)
    assert found["3 of 18 queries have no match by another camera and are not scored"][0] == "warning"


def test_what_is_no_file_is_named(market):
    (market / "pytorch/query/0008/0008_c9s1_00.jpg").mkdir()
    loop = market / "pytorch/query/0008/0008_c8s1_00.png"
    loop.symlink_to(loop)
    (market / "pytorch/query/0008/0008_c7s1_00.png").symlink_to("gone")
    examples = one(findings(market.parent), "3 named like images are no files", "warning")
    assert "pytorch/query/0008/0008_c8s1_00.png" in examples


def test_names_that_are_no_text_are_printed_with_escapes(market):
    raw = bytes(market) + b"/pytorch/query/0008/0008_c1s1_\xff\xc3\xbc.jpg"
    with open(raw, "wb") as file:  # noqa: PTH123 - a name of bytes
        file.write(b"no image")
    code, output = data("verify", market.parent)
    assert code == 1
    assert "0008_c1s1_\\udcffü.jpg" in output
    assert findings(market.parent)["1 of 97 images cannot be read"][0] == "error"


def test_manifests(market):
    path = market / "manifest.json"
    whole = path.read_text()
    digest = json.loads(whole)["digest"]
    path.write_text(whole.replace('"seed": 0', '"seed": 0,\n "digest": "0"', 1)[:-30])
    assert "damaged" in next(iter(findings(market.parent)))
    content = json.loads(whole)
    content["files"].popitem()
    path.write_text(json.dumps(content))
    assert "changed after it was written" in next(iter(findings(market.parent)))
    path.unlink()
    assert one(findings(market.parent), "no manifest.json", "note") == []
    assert not path.exists()
    data("verify", market.parent, "--write-manifest")
    assert json.loads(path.read_text())["digest"] == digest


def test_no_manifest_is_written_for_what_is_wrong(market):
    (market / "manifest.json").unlink()
    next((market / "pytorch/query").rglob("*.jpg")).unlink()
    code, _ = data("verify", market.parent, "--write-manifest")
    assert code == 1
    assert not (market / "manifest.json").exists()


def test_raw_folders_and_unknown_names_can_be_verified_too(tmp_path):
    releases.market(tmp_path / "our cameras")
    found = findings(tmp_path)
    assert [level for level, _ in found.values()] == ["note", "note"]
    assert any("not one of the published sets" in text for text in found)


def test_images_above_the_limit_count_as_unreadable(market):
    Image.new("L", (1200, 1000)).save(market / "pytorch/query/0008/0008_c1s1_99.png")
    assert "1 of 97 images cannot be read" in findings(market.parent, "--max-megapixels", "1")


def test_list():
    code, output = data("list")
    assert code is None
    assert len(output.splitlines()) == 12
    assert "751/12936" in output
    _, described = data("list", "DukeMTMC-reID")
    assert "withdrawn" in described
    assert "_c" in described


@pytest.mark.mpi
@pytest.mark.slow
@mpi.needs_mpirun
def test_the_nine_sets_train_and_evaluate_under_mpirun(tmp_path):
    """Release -> prepare -> verify -> mpirun: nine clients on three ranks, one round with the tiny network."""
    nine = list(RELEASES)[:9]
    for name in nine:
        RELEASES[name](tmp_path / "raw" / name)
        code, output = data("prepare", tmp_path / "raw" / name, "--dataset", name, "--out", tmp_path / "root")
        assert code is None
        assert "sha256 of all" in output
    code, output = data("verify", tmp_path / "root", "--json")
    assert code == 1  # small, hence not the published counts
    assert len(json.loads(output)["clients"]) == 9
    from tests.tiny import write_config

    changes = {
        "data.root": tmp_path / "root",
        "data.clients": "[]",
        "federation.rounds": 1,
        "clustering.min_samples": 2,
    }
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    argv = [DRIVER, "--", "train", write_config(tmp_path), "--out", tmp_path / "run", "--no-progress", *sets]
    mpi.succeed(3, argv)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert set(summary["clients"]) == {fact(name).client for name in nine}
    for client in summary["clients"].values():
        assert 0 < client["map_after"] <= 1
    assert summary["bytes_up"] > 0
