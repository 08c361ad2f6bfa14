"""Folders as the field lays them out, written by hand here and read back; and the ways in which they can be wrong."""

import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fedmpi.errors import DataError
from fedmpi.reid.datasets import client_names, identities, load_client, repeats
from fedmpi.reid.images import FilePixels


def _data(root, **changes):
    values = {
        "root": root,
        "clients": (),
        "split": None,
        "height": 32,
        "width": 16,
        "max_megapixels": 8.0,
        "name_images": False,
        "cache_dir": None,
        "ide": "off",
    }
    return SimpleNamespace(**(values | changes))


def _write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 16), (value % 256, 7, 9)).save(path)


def _raw(root, train=(1, 2), test=(5, 6), cameras=(1, 2)):
    for folder, pids in (("bounding_box_train", train), ("query", test), ("bounding_box_test", test)):
        for pid in pids:
            for camera in cameras:
                _write(root / folder / f"{pid:04d}_c{camera}s1_000451_00.jpg", pid)


def _processed(root, names):
    """Write empty-looking images under `root`/pytorch from {"train_all/0001/x.png", ...}."""
    for number, name in enumerate(names):
        _write(root / "pytorch" / name, number)


SMALL = [
    "train_all/00001/cam_1_00001_00000.png",
    "train_all/00001/cam_2_00001_00000.png",
    "query/00007/cam_1_00007_00000.png",
    "gallery/00007/cam_2_00007_00001.png",
]


def test_processed_layout_in_sorted_order_with_cameras(tmp_path):
    _processed(
        tmp_path / "MSMT17",
        [
            "train_all/0002/0002_c14_0030.jpg",
            "train_all/0002/0002_c3_0031.JPEG",
            "train_all/0001/0001_c1s1_000451_03.PNG",
            "query/0105/cam_2_00105_00003.bmp",
            "gallery/0105/0105_001_12_0303morning_0022_0.tif",
            "gallery/-1/-1_c2s1_000001_00.jpg",
            "gallery/0000/0000_c5s3_000001_00.jpg",
        ],
    )
    (tmp_path / "MSMT17/pytorch/train_all/0002/Thumbs.db").write_text("no image")
    (tmp_path / "MSMT17/pytorch/train_all/0002/._0002_c9_1.jpg").write_text("no image")
    (tmp_path / "MSMT17/pytorch/train_all/notes.txt").write_text("no folder")
    client = load_client(_data(tmp_path), 0, 0)
    assert client.name == "MSMT17"
    assert (client.train.pids.tolist(), client.train.camids.tolist()) == ([1, 2, 2], [1, 14, 3])
    assert (client.query.pids.tolist(), client.query.camids.tolist()) == ([105], [2])
    assert (client.gallery.pids.tolist(), client.gallery.camids.tolist()) == ([-1, 0, 105], [2, 5, 12])
    assert client.train.pids.dtype == client.train.camids.dtype == np.int64
    assert client.train.pixels.name(1) == "MSMT17/train_all image 2"
    assert client.train.take([2, 1]).pixels.name(1) == "MSMT17/train_all image 2"
    named = load_client(_data(tmp_path, name_images=True), 0, 0)
    assert named.train.pixels.name(1) == "MSMT17/train_all/0002_c14_0030.jpg"


def test_raw_market_layout(tmp_path):
    _raw(tmp_path / "Market")
    _write(tmp_path / "Market/bounding_box_test/-1_c3s1_000451_00.jpg")
    _write(tmp_path / "Market/bounding_box_test/0000_c6s1_000451_00.jpg")
    _write(tmp_path / "Market/query/-1_c3s1_000451_00.jpg")
    client = load_client(_data(tmp_path), 0, 0)
    assert (client.train.pids.tolist(), client.train.camids.tolist()) == ([1, 1, 2, 2], [1, 2, 1, 2])
    assert client.query.pids.tolist() == [5, 5, 6, 6]  # junk asks nothing
    assert (client.gallery.pids.tolist(), client.gallery.camids.tolist()) == ([-1, 0, 5, 5, 6, 6], [3, 6, 1, 2, 1, 2])


@pytest.mark.parametrize("layout", ["raw", "processed"])
def test_root_may_be_the_one_client(tmp_path, layout):
    if layout == "raw":
        _raw(tmp_path / "own")
    else:
        _processed(tmp_path / "own", SMALL)
    assert client_names(_data(tmp_path / "own"), 0) == ("own",)
    assert len(load_client(_data(tmp_path / "own"), 0, 0).train) > 0


def test_order_of_clients_is_that_of_the_benchmarks_then_by_name(tmp_path):
    for name in ("zeta", "ilids", "Market", "alpha", "Duke", "3dpes"):
        _processed(tmp_path / name, SMALL)
    (tmp_path / ".git").mkdir()
    (tmp_path / "papers").mkdir()
    assert client_names(_data(tmp_path), 0) == ("Duke", "Market", "3dpes", "ilids", "alpha", "zeta")
    assert client_names(_data(tmp_path, clients=("zeta", "Duke")), 0) == ("zeta", "Duke")
    assert load_client(_data(tmp_path, clients=("zeta", "Duke")), 0, 1).name == "Duke"
    with pytest.raises(DataError, match=r"no client duke, x in .*there are Duke, Market, 3dpes, ilids, alpha, zeta"):
        client_names(_data(tmp_path, clients=("duke", "x", "zeta")), 0)


def test_embedded_clients_need_no_folder():
    names = client_names(_data(None), 0)
    assert names == ("Duke", "Market", "cuhk03-np-detected", "prid", "cuhk01", "viper", "3dpes", "ilids")
    assert client_names(_data(None, clients=("prid", "Duke")), 0) == ("prid", "Duke")
    with pytest.raises(DataError, match="no embedded client pird; there are Duke, Market"):
        client_names(_data(None, clients=("pird",)), 0)


# every case: what to break in a good pair of folders, and what the message must say


def _load_all(root):
    return [load_client(_data(root), 0, index) for index in range(2)]


def _remove(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.unlink()


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda root: (root / "a/query").rename(root / "a/quarry"), r"a/query is missing; expected <client>/"),
        (lambda root: (root / "b/pytorch/gallery").rename(root / "b/g"), r"b/pytorch/gallery is missing; expected"),
        (lambda root: _remove(root / "a/bounding_box_train"), r"bounding_box_train: no image of any identity \(\.bmp"),
        (lambda root: _remove(root / "b/pytorch/query"), r"b/pytorch/query: no image of any identity"),
        (lambda root: _write(root / "a/query/street.jpg"), r"a/query/street\.jpg: name gives no identity and camera"),
        (lambda root: _write(root / "a/query/--_c1.jpg"), r"--_c1\.jpg: name gives no identity"),
        (lambda root: _write(root / "b/pytorch/query/00007/x.jpg"), r"00007/x\.jpg: name gives no camera"),
        (lambda root: _write(root / "b/pytorch/query/bob/cam_1_1_1.jpg"), r"query/bob: the folder of an identity"),
        (lambda root: _write(root / "a/query/0001_c1.jpg"), r"1 identities are both in bounding_box_train .*first: 1"),
        (lambda root: _write(root / "b/pytorch/gallery/1/cam_1_1_1.png"), r"b: 1 identities are both in train_all"),
    ],
)
def test_folders_that_are_wrong(tmp_path, breakage, message):
    _raw(tmp_path / "a")
    _processed(tmp_path / "b", SMALL)
    _load_all(tmp_path)
    breakage(tmp_path)
    with pytest.raises(DataError, match=message):
        _load_all(tmp_path)


def test_roots_that_are_wrong(tmp_path):
    with pytest.raises(DataError, match=r"data\.root: .*nowhere is not a folder; expected <client>/pytorch"):
        client_names(_data(tmp_path / "nowhere"), 0)
    with pytest.raises(DataError, match=r"no client found in .*; expected <client>/pytorch"):
        client_names(_data(tmp_path), 0)


# ---- one folder, K clients


def _wide(root):
    _raw(root, train=range(1, 12), test=range(21, 29), cameras=(1, 2, 3))
    for extra in (
        "0000_c1s1_00",
        "0000_c2s1_01",
        "0000_c3s1_02",
        "-1_c1s1_00",
        "-1_c1s1_01",
        "0040_c1s1_00",
        "0041_c2s1_0",
    ):
        _write(root / f"bounding_box_test/{extra}.jpg")


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_split_partitions_identities_and_images(tmp_path, parts):
    _wide(tmp_path / "omniglot")
    whole = load_client(_data(tmp_path, name_images=True), 0, 0)
    data = _data(tmp_path, split=parts, name_images=True)
    assert client_names(data, 5) == tuple(f"omniglot-{part}" for part in range(parts))
    clients = [load_client(data, 5, part) for part in range(parts)]
    for subset in ("train", "query", "gallery"):
        lists = [getattr(client, subset) for client in clients]
        names = [images.pixels.name(i) for images in lists for i in range(len(images))]
        everything = getattr(whole, subset).pixels
        assert sorted(names) == sorted(everything.name(i) for i in range(len(everything)))
        seen = [set(images.pids[images.pids > 0]) for images in lists]
        assert sum(map(len, seen)) == len(set().union(*seen))
        counts = [len(pids) for pids in seen]
        assert max(counts) - min(counts) <= (2 if subset == "gallery" else 1)
    for client in clients:
        assert set(client.query.pids) <= set(client.gallery.pids)
        for images in (client.train, client.query, client.gallery):
            label = [int(images.pixels.name(i).split("/")[-1].split("_c")[0]) for i in range(len(images))]
            assert images.pids.tolist() == label
            camera = [int(images.pixels.name(i).split("_c")[1][0]) for i in range(len(images))]
            assert images.camids.tolist() == camera


def test_split_depends_on_the_seed_alone(tmp_path):
    _wide(tmp_path / "omniglot")
    data = _data(tmp_path, split=3)
    first, again, other = (set(load_client(data, seed, 1).train.pids) for seed in (5, 5, 6))
    assert first == again != other


def test_split_wants_one_client_and_enough_identities(tmp_path):
    _raw(tmp_path / "a")
    with pytest.raises(DataError, match="3 parts, but a: training identities are only 2"):
        load_client(_data(tmp_path, split=3), 0, 0)
    _raw(tmp_path / "b")
    with pytest.raises(DataError, match=r"there are 2 \(a, b\); select one with data\.clients"):
        client_names(_data(tmp_path, split=2), 0)
    assert client_names(_data(tmp_path, split=2, clients=("b",)), 0) == ("b-0", "b-1")


# ---- pixels


def _pixels(path, megapixels=8.0):
    return FilePixels((str(path),), "Market/query", megapixels)


def test_pixels_are_upright_rgb_whatever_the_file(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "plain.png")
    np.testing.assert_array_equal(_pixels(tmp_path / "plain.png").read(0), image)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn the stored rows by 90 degrees clockwise
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(_pixels(tmp_path / "turned.png").read(0), np.rot90(image, -1))
    Image.fromarray(image[..., 0]).save(tmp_path / "grey.bmp")
    np.testing.assert_array_equal(_pixels(tmp_path / "grey.bmp").read(0), np.repeat(image[..., :1], 3, axis=2))
    Image.fromarray(image).quantize(256).save(tmp_path / "palette.png")
    assert _pixels(tmp_path / "palette.png").read(0).shape == (6, 4, 3)
    assert _pixels(tmp_path / "palette.png").read(0).dtype == np.uint8


def _cut(path):
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-700])


def _large(path):
    Image.new("L", (1000, 1001)).save(path)


def _bomb(path):
    """A tiny PNG that claims 20 000 x 20 000 pixels."""
    size = struct.pack(">II", 20_000, 20_000)
    Image.new("L", (1, 1)).save(path, format="PNG")
    header = b"IHDR" + size + path.read_bytes()[24:29]
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])


def _disguised(path):
    Image.new("RGB", (4, 4)).save(path, format="GIF")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("hello"), "cannot identify image file"),
        (lambda path: path.write_bytes(b""), "cannot identify image file"),
        (_cut, ""),
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (_large, r"1000x1001 is 1\.0 megapixels, above data\.max_megapixels=1$"),
        (_bomb, "decompression bomb"),
        (_disguised, "cannot identify image file"),
    ],
)
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_unreadable_pixels_are_data_errors_without_the_path(tmp_path, make, message, ending):
    path = tmp_path / f"0002_c1.{ending}"
    make(path)
    with pytest.raises(DataError, match=r"^Market/query image 1: cannot be read as an image: \S") as caught:
        _pixels(path, megapixels=1.0).read(0)
    assert caught.match(message)
    assert str(tmp_path) not in str(caught.value)
    assert "0002_c1" not in str(caught.value)


def _image(mode="RGB", seed=0):
    """Return 24x16 smooth pixels of a mode, so that JPEG changes little."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(40, 216, (3, 2, 3), dtype=np.uint8)).resize((16, 24)).convert(mode)


def test_sixteen_bits_keep_their_brightness(tmp_path):
    grey = np.arange(24 * 16, dtype=np.uint16).reshape(24, 16) * 170
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        read = _pixels(tmp_path / name).read(0)
        np.testing.assert_array_equal(read, np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=2))
    assert read.max() > 200
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match="floating-point pixels of unknown range"):
        _pixels(tmp_path / "f.tif").read(0)


def test_print_colours_become_screen_colours(tmp_path):
    Image.new("CMYK", (16, 24), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg", quality=95)
    read = _pixels(tmp_path / "cyan.jpg").read(0)
    assert read.shape == (24, 16, 3)
    assert np.abs(read.astype(int) - (0, 255, 255)).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "RGB"])
def test_modes_become_rgb(tmp_path, mode):
    image = _image(mode)
    image.save(tmp_path / "a.png")
    wanted = np.asarray(_image(mode).convert("RGB"))
    np.testing.assert_array_equal(_pixels(tmp_path / "a.png").read(0), wanted)


@pytest.mark.parametrize(("content", "ending"), [("JPEG", "png"), ("PNG", "jpg"), ("BMP", "png"), ("TIFF", "jpeg")])
def test_the_content_decides_and_not_the_ending(tmp_path, content, ending):
    _image().save(tmp_path / f"a.{ending}", format=content)
    read = _pixels(tmp_path / f"a.{ending}").read(0)
    assert np.abs(read.astype(int) - np.asarray(_image())).mean() < 3


@pytest.mark.parametrize("turn", range(1, 9))
def test_all_orientations_of_exif(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    _image().save(tmp_path / "a.jpg", exif=exif, quality=95)
    stored = np.asarray(Image.open(tmp_path / "a.jpg"))
    wanted = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: stored[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(stored),
    }[turn]  # fmt: skip
    np.testing.assert_array_equal(_pixels(tmp_path / "a.jpg").read(0), wanted)


def test_folders_loops_and_strange_names_among_images(tmp_path):
    """A folder named like an image, links in circles and to nowhere are passed over; any name is read."""
    _raw(tmp_path / "own")
    train = tmp_path / "own/bounding_box_train"
    (train / "0001_c1_folder.jpg").mkdir()
    (train / "0001_c1_loop.jpg").symlink_to(train / "0001_c1_loop.jpg")
    (train / "0001_c1_up.jpg").symlink_to("..")
    (train / "0001_c1_gone.jpg").symlink_to("nowhere.jpg")
    (train / "deeper").symlink_to(train)
    before = len(load_client(_data(tmp_path / "own"), 0, 0).train)
    assert before == 4
    _write(train / "0001_c2_\u4e8c \u00fc'\\n.jpg")
    (train / "0001_c2_linked.jpg").symlink_to(train / "0001_c1s1_000451_00.jpg")
    with open(bytes(train) + b"/0001_c2_\xff\xfe.jpg", "wb") as file:  # noqa: PTH123 - a name that is no text
        file.write((train / "0001_c1s1_000451_00.jpg").read_bytes())
    images = load_client(_data(tmp_path / "own"), 0, 0).train
    assert len(images) == before + 3
    assert all(images.pixels.read(i).shape == (16, 8, 3) for i in range(len(images)))
    assert not images.bad


# ---- identity-distributed equalisation


@pytest.mark.parametrize(
    ("ide", "images", "people", "times"),
    [
        ("off", 632, 316, 1),
        ("auto", 632, 316, 10),  # VIPeR: 2 images per identity, FedReID repeats 10 times
        ("auto", 1940, 485, 5),  # CUHK01: 4
        ("auto", 248, 59, 5),  # i-LIDS: 4.2
        ("auto", 16522, 702, 1),  # Duke: 23.5
        ("auto", 4000, 10, 1),
        ("auto", 0, 0, 1),
        ({"viper": 7}, 632, 316, 7),
        ({"prid": 7}, 632, 316, 1),
    ],
)
def test_repeats(ide, images, people, times):
    assert repeats(_data(None, ide=ide), "viper", images, people) == times


def test_identities_leave_out_junk():
    assert identities([-1, 0, 3, 3, -1, 9]) == 3
