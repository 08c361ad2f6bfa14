"""Every release, written in small by `tests.rawdata.releases`, becomes the client that the table of facts promises."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fedmpi.errors import DataError
from fedmpi.rawdata import prepare as preparing
from fedmpi.rawdata.facts import fact
from fedmpi.rawdata.manifest import read_manifest
from fedmpi.rawdata.prepare import prepare
from fedmpi.reid.datasets import load_client
from tests.rawdata import releases
from tests.rawdata.releases import RELEASES, picture

# identities and images of train, query and gallery that the small releases must give; None = depends on the draw
EXPECTED = {
    "duke": (6, 36, 5, 15, 6, 36),
    "market": (6, 36, 6, 18, 7, 42),  # 36 of people, 3 distractors, 3 junk
    "cuhk03-np-detected": (6, 36, 6, 12, 6, 24),
    "prid": (8, None, 4, 4, 9, 9),
    "cuhk01": (6, 24, 6, 12, 6, 12),
    "viper": (6, 12, 6, 6, 6, 6),
    "3dpes": (6, None, None, None, 6, None),
    "ilids": (6, None, 6, None, 6, None),
    "msmt17": (6, 48, 6, 12, 6, 36),
    "ilids-vid": (6, 12, 6, 6, 6, 6),
    "cuhk03-np-labeled": (6, 57, 6, 12, 6, 44),
}


def load(root, name):
    options = {"max_megapixels": 8.0, "name_images": False, "cache_dir": None}
    data = SimpleNamespace(root=root, clients=(fact(name).client,), split=None, **options)
    return load_client(data, 0, 0)


def tree(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def sets(client):
    return client.train, client.query, client.gallery


@pytest.mark.parametrize("name", RELEASES)
def test_identities_images_and_cameras(tmp_path, name):
    RELEASES[name](tmp_path / "raw")
    assert prepare(tmp_path / "raw", fact(name), tmp_path / "root")
    client = load(tmp_path / "root", name)
    found = [n for images in sets(client) for n in (len(set(images.pids[images.pids >= 0])), len(images))]
    assert [f if wanted is not None else None for f, wanted in zip(found, EXPECTED[name], strict=True)] == [
        *EXPECTED[name]
    ]
    cameras = set(np.concatenate([images.camids for images in sets(client)]).tolist())
    assert cameras <= set(range(1, fact(name).cameras + 1))
    assert len(cameras) >= 2
    test = set(client.query.pids) | set(client.gallery.pids[client.gallery.pids > 0])
    assert not set(client.train.pids) & test
    assert {p.name for p in (tmp_path / "root").iterdir()} == {fact(name).client}


@pytest.mark.parametrize("name", [name for name in RELEASES if name != "cuhk03-np-labeled"])
@pytest.mark.parametrize("way", ["link", "symlink", "copy"])
def test_files_are_those_of_the_release(tmp_path, name, way):
    RELEASES[name](tmp_path / "raw")
    prepare(tmp_path / "raw", fact(name), tmp_path / "root", way=way)
    raw = {content: path for path, content in tree(tmp_path / "raw").items()}
    made = tree(tmp_path / "root" / fact(name).client / "pytorch")
    assert made
    assert all(content in raw for content in made.values())
    assert len(set(made.values())) == len(made), "an image came twice"
    files = [f for f in (tmp_path / "root").rglob("*.*") if f.suffix != ".json"]
    assert {f.is_symlink() for f in files} == {way == "symlink"}
    assert {f.stat().st_nlink > 1 for f in files} == {way == "link"}


def test_copies_where_links_are_impossible(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    releases.viper(tmp_path / "raw")
    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    prepare(tmp_path / "raw", fact("viper"), tmp_path / "root", way="link")
    assert len(list((tmp_path / "root").rglob("*.bmp"))) == 24


# ---- what is special about each set


def by_person(raw, root, name):
    """Map the number in a release's file name to the subsets and cameras where its bytes are found."""
    made = {}
    client = root / fact(name).client / "pytorch"
    for file in client.rglob("*.*"):
        made[file.read_bytes()] = (file.parts[-3], int(file.name.split("_")[1]))
    return {path: made.get(content) for path, content in tree(raw).items()}


def test_market_keeps_names_junk_and_distractors(tmp_path):
    releases.market(tmp_path / "raw/Market-1501-v15.09.15")
    prepare(tmp_path / "raw", fact("market"), tmp_path / "root")
    gallery = load(tmp_path / "root", "market").gallery
    assert (gallery.pids == -1).sum() == (gallery.pids == 0).sum() == 3
    assert sorted(gallery.camids[gallery.pids == -1]) == [1, 2, 3]
    assert (tmp_path / "root/Market/pytorch/gallery/0000/0000_c4s1_000000_01.jpg").is_file()


def test_cuhk01_views_are_cameras(tmp_path):
    releases.cuhk01(tmp_path / "raw")
    prepare(tmp_path / "raw", fact("cuhk01"), tmp_path / "root")
    for path, (subset, camid) in by_person(tmp_path / "raw", tmp_path / "root", "cuhk01").items():
        view = int(path[-5])
        assert camid == (1 if view <= 2 else 2)
        assert subset in ("train_all", "query" if camid == 1 else "gallery")


def test_prid_rule(tmp_path):
    releases.prid(tmp_path / "raw")
    prepare(tmp_path / "raw", fact("prid"), tmp_path / "root")
    made = by_person(tmp_path / "raw", tmp_path / "root", "prid")
    train, tested = Counter(), set()
    for path, place in made.items():
        shot, camera, person = path.split("/")[1:4]
        number = int(person[7:11])
        if place is None:
            continue
        assert place[1] == (1 if camera == "cam_a" else 2)
        if place[0] == "train_all":
            assert shot == "multi_shot"
            train[number, camera] += 1
        else:
            assert shot == "single_shot"
            assert place[0] == ("query" if camera == "cam_a" else "gallery")
            tested.add(number) if number <= 200 else None
    assert all(count == (10 if number % 2 else 3) for (number, _), count in train.items())  # of 12 and 3
    trained = {number for number, _ in train}
    assert {n for n in trained if n > 200} == set(range(201, 205))
    assert all(camera == "cam_a" for number, camera in train if number > 200)
    assert len(tested) == 4
    assert tested == set(range(1, 9)) - trained
    gallery = load(tmp_path / "root", "prid").gallery.pids
    assert set(gallery) == tested | set(range(386, 391))  # persons 201-205 of camera B, behind camera A's 385


@pytest.mark.parametrize(("name", "unit"), [("3dpes", 2), ("ilids", None)])
def test_artificial_cameras_halve_each_person(tmp_path, name, unit):
    RELEASES[name](tmp_path / "raw")
    prepare(tmp_path / "raw", fact(name), tmp_path / "root")
    halves = {}
    for path, (_, camid) in by_person(tmp_path / "raw", tmp_path / "root", name).items():
        file = path.split("/")[-1]
        person, view = file.split("_")[:2] if unit else (file[:4], file)
        halves.setdefault(person, {1: set(), 2: set()})[camid].add(view)
    for one, two in ((h[1], h[2]) for h in halves.values()):
        assert not one & two, "a view is in both cameras"
        assert len(one) == (len(one) + len(two)) // 2


def test_msmt17_versions_are_the_same_set(tmp_path):
    for version in (1, 2):
        releases.msmt17(tmp_path / f"raw{version}", version=version)
        prepare(tmp_path / f"raw{version}", fact("msmt17"), tmp_path / f"root{version}")
    one, two = (tree(tmp_path / f"root{v}/MSMT17/pytorch") for v in (1, 2))
    assert one == two
    client = load(tmp_path / "root1", "msmt17")
    assert set(client.train.pids) == set(range(6))
    assert set(client.query.pids) == set(client.gallery.pids) == set(range(6, 12))
    assert set(client.train.camids) == {1, 9, 14, 15}


def test_cuhk03_mat_gives_the_images_of_the_protocol(tmp_path):
    releases.cuhk03_mat(tmp_path / "raw")
    prepare(tmp_path / "raw", fact("cuhk03-np-labeled"), tmp_path / "root")
    client = load(tmp_path / "root", "cuhk03-np-labeled")
    assert set(client.train.pids) == set(range(1, 7))
    assert set(client.gallery.pids) == set(range(7, 13))
    file = tmp_path / "root/cuhk03-np-labeled/pytorch/train_all/0003/0003_c2_100308.png"  # pair 1, person 3, image 8
    assert np.array_equal(np.asarray(Image.open(file)), picture(103, 8))


# ---- splits


def test_the_seed_decides_and_repeats(tmp_path):
    releases.ilids(tmp_path / "raw")
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        prepare(tmp_path / "raw", fact("ilids"), tmp_path / folder, seed=seed)
    a, b, c = (tree(tmp_path / folder / "ilids") for folder in "abc")
    assert a == b
    assert a.keys() != c.keys()


@pytest.mark.parametrize("name", ["cuhk01", "viper", "3dpes", "ilids", "ilids-vid"])
def test_a_whole_set_is_cut_as_published(name):
    from fedmpi.rawdata.shots import Person
    from fedmpi.rawdata.splits import draw

    entry = fact(name)
    whole = entry.train.identities + entry.gallery.identities
    people = [Person(n, ((f"{n}a",), (f"{n}b",))) for n in range(whole)]
    people = [
        Person(n, tuple(tuple(map(__import__("pathlib").Path, c)) for c in p.cameras)) for n, p in enumerate(people)
    ]
    selection = draw(people, entry, np.random.default_rng(0))
    assert len({shot.pid for shot in selection.train}) == entry.train.identities
    assert len({shot.pid for shot in selection.gallery}) == entry.gallery.identities


def test_the_fields_own_files_are_taken(tmp_path):
    releases.dgd(tmp_path / "raw")
    prepare(tmp_path / "raw", fact("cuhk01"), tmp_path / "root")
    client = load(tmp_path / "root", "cuhk01")
    assert set(client.train.pids) == {1, 3, 5, 7, 9, 11}
    assert set(client.query.pids) == set(client.gallery.pids) == {2, 4, 6, 8, 10, 12}
    assert set(client.query.camids) == {1}
    assert set(client.gallery.camids) == {2}


@pytest.mark.parametrize("keys", [("trainval", "test_probe", "test_gallery"), ("trainval", "query", "gallery")])
def test_a_split_file_beside_a_release(tmp_path, keys):
    releases.viper(tmp_path / "raw")
    content = dict(zip(keys, ([0, 5], [1, 2], [1, 2, 3]), strict=True))
    (tmp_path / "split.json").write_text(json.dumps([content] if "query" in keys else content))
    prepare(tmp_path / "raw", fact("viper"), tmp_path / "root", split=tmp_path / "split.json")
    client = load(tmp_path / "root", "viper")
    assert [set(images.pids) for images in sets(client)] == [{1, 6}, {2, 3}, {2, 3, 4}]


def test_the_split_file_of_ilids_vid(tmp_path):
    releases.ilids_vid(tmp_path / "raw", people=6)
    rows = np.array([[2, 4, 6, 1, 3, 5], [1, 2, 3, 4, 5, 6]], np.uint16)  # the first is taken: its first half is tested
    savemat(tmp_path / "train_test_splits_ilidsvid.mat", {"ls_set": rows})
    split = tmp_path / "train_test_splits_ilidsvid.mat"
    prepare(tmp_path / "raw", fact("ilids-vid"), tmp_path / "root", split=split)
    client = load(tmp_path / "root", "ilids-vid")
    people = sorted({*client.train.pids, *client.query.pids})
    assert set(client.train.pids) == {people[0], people[2], people[4]}
    assert set(client.query.pids) == set(client.gallery.pids) == {people[1], people[3], people[5]}
    split.write_bytes(b"MATLAB")
    with pytest.raises(DataError, match="no split file of iLIDS-VID"):
        prepare(tmp_path / "raw", fact("ilids-vid"), tmp_path / "other", split=split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "no split; expected the keys trainval, test_probe, test_gallery"),
        ('{"trainval": [0]}', "no split"),
        ('{"trainval": [0], "query": [99], "gallery": [1]}', "query must be a list of whole numbers from 0 to 11"),
        ('{"trainval": [0], "query": [true], "gallery": [1]}', "query must be a list"),
        ('{"trainval": [], "query": [1], "gallery": [1]}', "train must be a list"),
        ('{"trainval": [0, 1], "query": [1], "gallery": [1]}', r"1 persons are in both .*first: 1"),
    ],
)
def test_split_files_that_are_wrong(tmp_path, content, message):
    releases.viper(tmp_path / "raw")
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "raw", fact("viper"), tmp_path / "root", split=tmp_path / "split.json")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("identities", "message"),
    [
        ([[["../../etc/passwd"], []]], "names '../../etc/passwd', which is no file below"),
        ([[["/etc/passwd"], []]], "names '/etc/passwd'"),
        ([[["gone.png"], []]], "names 'gone.png'"),
        ([[[3], []]], "no list of file names"),
        ([[[], []], [[]]], "identity 1 is no list of 2 cameras"),
        ([], "no list under 'identities'"),
    ],
)
def test_meta_files_that_are_wrong(tmp_path, identities, message):
    releases.dgd(tmp_path / "raw")
    (tmp_path / "raw/meta.json").write_text(json.dumps({"identities": identities}))
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "raw", fact("cuhk01"), tmp_path / "root")


# ---- releases that are not what they should be


def _break_list(raw, text):
    (raw / "MSMT17_V1/list_query.txt").write_text(text)


@pytest.mark.parametrize(
    ("name", "breakage", "message"),
    [
        ("market", lambda raw: (raw / "query/street.jpg").write_bytes(b""), r"street\.jpg: name gives no identity"),
        ("market", lambda raw: (raw / "query").rename(raw / "q"), r"query: cannot be listed .*expected \{bounding"),
        ("cuhk01", lambda raw: (raw / "campus/0001005.png").write_bytes(b""), r"0001005\.png: unexpected name"),
        ("viper", lambda raw: next((raw / "VIPeR/cam_b").iterdir()).unlink(), "cam_a has 12 and cam_b 11 images"),
        ("3dpes", lambda raw: (raw / "RGB/a.bmp").write_bytes(b""), r"a\.bmp: name gives no person and view"),
        ("msmt17", lambda raw: _break_list(raw, "0000/x.jpg 0\n"), r"list_query\.txt:1: expected '0000/0000_000_01"),
        ("msmt17", lambda raw: _break_list(raw, "../../0000/0000_000_01_a.jpg 0\n"), r"list_query\.txt:1: expected"),
        ("msmt17", lambda raw: _break_list(raw, "0000/0000_000_01_gone.jpg 0\n"), "txt:1: there is no file"),
        ("msmt17", lambda raw: _break_list(raw, "\n"), "names no image"),
        ("cuhk03-np-labeled", lambda raw: (raw / "cuhk-03.mat").write_bytes(b"x" * 999), "is no release of CUHK03"),
        (
            "cuhk03-np-labeled",
            lambda raw: (raw / "cuhk03_new_protocol_config_labeled.mat").write_bytes(b"x" * 999),
            "is no protocol of CUHK03-NP",
        ),
        (
            "cuhk03-np-labeled",
            lambda raw: (raw / "cuhk03_new_protocol_config_labeled.mat").unlink(),
            r"holds no cuhk03_new_protocol_config_labeled\.mat \(the split",
        ),
        ("cuhk03-np-labeled", lambda raw: (releases._protocol(
            raw / "cuhk03_new_protocol_config_labeled.mat", (7, 6))), "lists 2_006_1_01.png, which"),
    ],
)  # fmt: skip
def test_broken_releases_are_named_and_leave_nothing(tmp_path, name, breakage, message):
    RELEASES[name](tmp_path / "raw")
    breakage(tmp_path / "raw")
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "raw", fact(name), tmp_path / "root")
    assert not (tmp_path / "root").exists()


# ---- idempotent, resumable, atomic


def test_done_is_not_done_again_and_another_split_is_refused(tmp_path):
    releases.ilids(tmp_path / "raw")
    assert prepare(tmp_path / "raw", fact("ilids"), tmp_path / "root")
    before = tree(tmp_path)
    assert not prepare(tmp_path / "raw", fact("ilids"), tmp_path / "root")
    assert tree(tmp_path) == before
    with pytest.raises(DataError, match="not from the same release, seed and split; nothing is overwritten"):
        prepare(tmp_path / "raw", fact("ilids"), tmp_path / "root", seed=1)
    assert tree(tmp_path) == before
    next((tmp_path / "root").rglob("*.jpg")).unlink()
    with pytest.raises(DataError, match="has vanished since it was prepared"):
        prepare(tmp_path / "raw", fact("ilids"), tmp_path / "root")


@pytest.mark.parametrize("name", ["market", "cuhk03-np-labeled"])
@pytest.mark.parametrize("after", [0, 1, 20])
def test_interrupted_it_leaves_no_client_and_goes_on(tmp_path, monkeypatch, name, after):
    RELEASES[name](tmp_path / "raw")
    prepare(tmp_path / "raw", fact(name), tmp_path / "whole", way="copy")
    placed = []

    def progress(done, total):
        placed.append(done)
        if len(placed) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "raw", fact(name), tmp_path / "root", way="copy", progress=progress)
    assert not (tmp_path / "root" / fact(name).client).exists()
    placed.clear()
    assert prepare(tmp_path / "raw", fact(name), tmp_path / "root", way="copy", progress=lambda d, t: placed.append(d))
    assert placed[0] == after + 2  # what was placed is not placed again
    assert tree(tmp_path / "root") == tree(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "root").iterdir()} == {fact(name).client}


def test_leftovers_of_another_plan_and_torn_files_are_removed(tmp_path):
    releases.ilids(tmp_path / "raw")
    prepare(tmp_path / "raw", fact("ilids"), tmp_path / "whole", seed=1)
    partial = tmp_path / "root/.ilids.partial"
    (partial / "pytorch/train_all/00099").mkdir(parents=True)
    (partial / "pytorch/train_all/00099/cam_1_00099_00000.jpg").write_bytes(b"of another seed")
    (partial / ".plan").write_text("another")
    prepare(tmp_path / "raw", fact("ilids"), tmp_path / "root", seed=1)
    assert tree(tmp_path / "root") == tree(tmp_path / "whole")

    torn = tmp_path / "again/.ilids.partial"
    plan = preparing.plan(tmp_path / "raw", preparing.select(tmp_path / "raw", fact("ilids"), 1))
    folder = torn / next(iter(plan.shots)).rpartition("/")[0]
    folder.mkdir(parents=True)
    (folder / ".unfinished-x.jpg").write_bytes(b"half")
    (torn / ".plan").write_text(plan.digest)
    prepare(tmp_path / "raw", fact("ilids"), tmp_path / "again", seed=1)
    assert tree(tmp_path / "again") == tree(tmp_path / "whole")


def test_killed_at_any_moment_it_can_go_on(tmp_path):
    """A real process, killed without warning after some time; whatever it had done, the next one makes it whole."""
    releases.market(tmp_path / "raw", people=60)
    prepare(tmp_path / "raw", fact("market"), tmp_path / "whole", way="copy")
    argv = ["prepare", tmp_path / "raw", "--dataset", "market", "--out", tmp_path / "root", "--how", "copy"]
    command = [sys.executable, "-m", "fedmpi", "data", *map(str, argv)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / "root/.Market.partial"
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end and not list(partial.rglob("*.jpg")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert tree(tmp_path / "root") == tree(tmp_path / "whole")


def test_two_at_once_do_not_mix(tmp_path):
    releases.viper(tmp_path / "raw")
    partial = tmp_path / "root/.viper.partial"
    partial.mkdir(parents=True)
    handle = os.open(partial, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="another process is preparing this client"):
        prepare(tmp_path / "raw", fact("viper"), tmp_path / "root")
    os.close(handle)
    assert prepare(tmp_path / "raw", fact("viper"), tmp_path / "root")


def test_the_manifest_names_no_place_of_this_machine(tmp_path):
    releases.viper(tmp_path / "raw")
    prepare(tmp_path / "raw", fact("viper"), tmp_path / "root", seed=7)
    manifest = read_manifest(tmp_path / "root/viper")
    assert (manifest.dataset, manifest.seed, len(manifest.files)) == ("viper", 7, 24)
    assert str(tmp_path) not in (tmp_path / "root/viper/manifest.json").read_text()
    listed = subprocess.run(
        ["sha256sum", *sorted(manifest.files)], cwd=tmp_path / "root/viper", capture_output=True, text=True, check=True
    ).stdout
    total = subprocess.run(["sha256sum"], input=listed, capture_output=True, text=True, check=True).stdout
    assert total.split()[0] == manifest.digest()
