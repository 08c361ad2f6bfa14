"""The embedded people: reproducible, shaped like the benchmarks, and neither trivial nor hopeless."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedmpi.errors import DataError
from fedmpi.reid import synthetic
from fedmpi.reid.datasets import client_names, load_client
from fedmpi.reid.synthetic import NAMES, draw_client, plan_client, write_tree


def _data(*, root=None, clients=(), height=64, width=32, **factors):
    names = ("identities", "test_identities", "images", "test_images", "difficulty")
    return SimpleNamespace(
        root=root,
        clients=clients,
        split=None,
        height=height,
        width=width,
        max_megapixels=8.0,
        name_images=True,
        cache_dir=None,
        synthetic=SimpleNamespace(**{name: factors.get(name, 1.0) for name in names}),
    )


def _array(images):
    return np.stack([images.pixels.read(i) for i in range(len(images))])


@pytest.fixture(scope="module")
def everyone():
    return [draw_client(_data(), 0, name) for name in NAMES]


def test_cameras_and_sizes_follow_the_benchmarks(everyone):
    cameras = [len(np.unique(np.concatenate([c.train.camids, c.query.camids, c.gallery.camids]))) for c in everyone]
    assert cameras == [8, 6, 2, 2, 2, 2, 2, 2]
    sizes = [len(client.train) for client in everyone]
    assert sizes == sorted(sizes, reverse=True)  # Duke > Market > CUHK03 > ... > i-LIDS, as in the originals
    assert 1500 <= sum(sizes) <= 1850
    assert max(sizes) >= 2.5 * min(sizes)


def test_every_training_identity_can_be_found_across_cameras(everyone):
    for client in everyone:
        for pid in np.unique(client.train.pids):
            _, counts = np.unique(client.train.camids[client.train.pids == pid], return_counts=True)
            assert len(counts) >= 2
            assert counts.min() >= 2


def test_protocol(everyone):
    for client in everyone:
        assert not np.intersect1d(client.train.pids, np.union1d(client.query.pids, client.gallery.pids)).size
        pairs = set(zip(client.query.pids.tolist(), client.query.camids.tolist(), strict=True))
        assert len(pairs) == len(client.query) == 2 * len(np.unique(client.query.pids))
        for pid, camid in pairs:  # something to find in another camera
            assert ((client.gallery.pids == pid) & (client.gallery.camids != camid)).any()
        images = np.concatenate([_array(part) for part in (client.train, client.query, client.gallery)])
        assert images.dtype == np.uint8
        assert images.shape[1:] == (64, 32, 3)
        assert len(np.unique(images, axis=0)) == len(images)  # no picture twice, so nothing leaks into the test


def test_some_galleries_hold_strangers(everyone):
    strangers = {client.name: len(np.setdiff1d(client.gallery.pids, client.query.pids)) for client in everyone}
    assert strangers["prid"] >= 10
    assert strangers["viper"] == 0


def test_drawing_is_a_function_of_seed_client_and_configuration():
    data = _data(clients=("ilids", "viper"))
    first, again = (load_client(data, 3, 0) for _ in range(2))
    assert first.name == "ilids"
    np.testing.assert_array_equal(_array(first.train), _array(again.train))
    alone = draw_client(_data(), 3, "ilids")  # the other clients of a run do not matter
    np.testing.assert_array_equal(_array(first.gallery), _array(alone.gallery))
    other = draw_client(_data(), 4, "ilids")
    assert not np.array_equal(_array(first.query)[0], _array(other.query)[0])


def test_clients_of_the_same_style_still_have_people_of_their_own(monkeypatch):
    monkeypatch.setitem(synthetic.PROFILES, "viper", synthetic.PROFILES["cuhk01"])
    left, right = (_array(draw_client(_data(identities=0.1), 0, name).query) for name in ("cuhk01", "viper"))
    assert left.shape == right.shape
    assert np.abs(left.astype(int) - right).mean(axis=(1, 2, 3)).min() > 5


def test_factors_scale_numbers_and_leave_people_as_they_are():
    base, fewer, more = (draw_client(_data(identities=factor), 0, "3dpes") for factor in (1.0, 0.5, 2.0))
    for subset in ("train", "query", "gallery"):
        small, normal, big = (len(np.unique(getattr(client, subset).pids)) for client in (fewer, base, more))
        assert (2 * small, 2 * normal) == (normal, big)
        np.testing.assert_array_equal(
            _array(getattr(fewer, subset)), _array(getattr(base, subset))[: len(getattr(fewer, subset))]
        )
    slots, many = (plan_client(_data(images=factor), 0, "3dpes") for factor in (1.0, 3.0))
    train, tripled = (sum(slot.subset == "train_all" for slot in plan) for plan in (slots, many))
    assert tripled == 3 * train
    assert len(plan_client(_data(identities=0.001, images=0.001), 0, "prid")) > 0


def test_other_numbers_of_test_people_change_neither_training_nor_those_that_are_there():
    base, more = draw_client(_data(), 0, "prid"), draw_client(_data(test_identities=3.0), 0, "prid")
    np.testing.assert_array_equal(_array(more.train), _array(base.train))
    first = len(base.query)
    np.testing.assert_array_equal(_array(more.query)[:first], _array(base.query))
    people = [(len(np.unique(c.query.pids)), len(np.unique(c.gallery.pids))) for c in (base, more)]
    assert people == [(26, 44), (78, 132)]
    assert more.gallery.pids.max() == 5000 + 132
    fewer = draw_client(_data(test_images=0.3), 0, "prid")
    np.testing.assert_array_equal(_array(fewer.train), _array(base.train))
    np.testing.assert_array_equal(_array(fewer.query), _array(base.query))
    assert len(fewer.gallery) == 2 * 44  # one image in each of two cameras
    halved = plan_client(_data(identities=0.5, test_identities=2.0), 0, "prid")
    subsets = {subset: {slot.pid for slot in halved if slot.subset == subset} for subset in ("train_all", "query")}
    assert (len(subsets["train_all"]), len(subsets["query"])) == (8, 26)


def _person_mask(images):
    """The middle of the picture, where the person stands."""
    return images[:, 8:56, 10:22].astype(float)


def _baseline(client):
    """mAP of the simplest description that ignores light: mean colours of eight stripes relative to the picture's."""

    def describe(images):
        pixels = _array(images).astype(float) + 1
        pixels = (pixels / pixels.mean(axis=(1, 2), keepdims=True))[:, :, 8:24]
        stripes = np.stack([part.mean(axis=(1, 2)) for part in np.array_split(pixels, 8, axis=1)], axis=1)
        features = stripes.reshape(len(pixels), -1) - stripes.mean(axis=0).reshape(1, -1)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    return _mean_ap(describe(client.query) @ describe(client.gallery).T, client)


def _mean_ap(similarity, client):
    """Average precision by definition, one query at a time."""
    values = []
    for row, pid, camid in zip(similarity, client.query.pids, client.query.camids, strict=True):
        keep = ~((client.gallery.pids == pid) & (client.gallery.camids == camid))
        hits = (client.gallery.pids[keep] == pid)[np.argsort(-row[keep], kind="stable")]
        ranks = np.flatnonzero(hits) + 1
        values.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return float(np.mean(values))


def _histogram(client):
    """mAP of a joint colour histogram of the whole picture (6 x 6 x 6 bins)."""

    def describe(images):
        codes = (_array(images).astype(int) // 43 * np.array([36, 6, 1])).sum(axis=3)
        counts = np.sqrt([np.bincount(code.ravel(), minlength=216) for code in codes])
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    return _mean_ap(describe(client.query) @ describe(client.gallery).T, client)


def test_colour_alone_does_not_solve_it_but_identity_is_visible(everyone):
    rng = np.random.default_rng(0)
    chance = np.mean([_mean_ap(rng.normal(size=(len(c.query), len(c.gallery))), c) for c in everyone])
    histogram, stripes = (np.mean([measure(c) for c in everyone]) for measure in (_histogram, _baseline))
    assert chance < 0.1
    assert histogram < 0.3
    assert 4 * chance < stripes < 0.7


def test_difficulty_scales_the_nuisances():
    easy, normal, hard = (
        np.mean([_baseline(draw_client(_data(difficulty=d), 0, name)) for name in ("Market", "viper")])
        for d in (0.0, 1.0, 2.0)
    )
    assert easy > normal > hard
    calm = draw_client(_data(difficulty=0.0), 0, "ilids")
    pictures = _person_mask(_array(calm.train))
    first = calm.train.pids == 1
    spread = pictures[first].std(axis=0).mean()
    assert spread < 0.2 * pictures[~first].std(axis=0).mean()  # without nuisances a person looks the same everywhere


def test_any_size_is_drawn():
    client = draw_client(_data(height=100, width=40, identities=0.1), 0, "viper")
    assert client.train.pixels.read(0).shape == (100, 40, 3)


# ---- as files


@pytest.mark.parametrize("name", ["Market", "viper"])
def test_files_give_the_same_as_memory(tmp_path, name):
    data = _data(clients=(name,), identities=0.2)
    count = write_tree(tmp_path / "tree", data, 7)
    read = load_client(_data(root=tmp_path / "tree"), 7, 0)
    drawn = draw_client(data, 7, name)
    assert count == len(drawn.train) + len(drawn.query) + len(drawn.gallery)
    for subset in ("train", "query", "gallery"):
        left, right = getattr(read, subset), getattr(drawn, subset)
        np.testing.assert_array_equal(left.pids, right.pids)
        np.testing.assert_array_equal(left.camids, right.camids)
        np.testing.assert_array_equal(_array(left), _array(right))
        assert [left.pixels.name(i) for i in range(len(left))] == [right.pixels.name(i) for i in range(len(right))]


def test_a_tree_has_all_clients_in_the_order_of_memory(tmp_path):
    told = []
    total = write_tree(tmp_path, _data(height=32, width=16, identities=0.05), 0, lambda *news: told.append(news))
    assert client_names(_data(root=tmp_path), 0) == client_names(_data(), 0) == tuple(name for name, _ in told)
    assert sum(count for _, count in told) == total == len(list(tmp_path.rglob("*.png")))
    assert {len(path.relative_to(tmp_path).parts) for path in tmp_path.rglob("*.png")} == {5}


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        write_tree(tmp_path, _data(), 0)
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        write_tree(tmp_path / "mine.txt", _data(), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(DataError, match="no embedded client nobody"):
        write_tree(tmp_path / "new", _data(clients=("nobody",)), 0)


def test_an_interrupted_write_leaves_no_half_client(tmp_path, monkeypatch):
    written = []
    whole = synthetic._write_image

    def interrupted(*args):
        if len(written) == 60:
            raise KeyboardInterrupt
        written.append(args)
        return whole(*args)

    monkeypatch.setattr(synthetic, "_write_image", interrupted)
    first = len(plan_client(_data(identities=0.1), 0, "viper"))
    assert first < 60
    with pytest.raises(KeyboardInterrupt):
        write_tree(tmp_path, _data(clients=("viper", "Duke"), identities=0.1), 0)
    assert [path.name for path in tmp_path.iterdir()] == ["viper"]
    assert len(list(tmp_path.rglob("*.png"))) == first
