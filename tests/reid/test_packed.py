"""The file of resized images: the same pixels as without it, whoever wrote them and however it was damaged."""

import pickle

import numpy as np
import pytest
from PIL import Image

from fedmpi.errors import DataError
from fedmpi.reid import images as images_module
from fedmpi.reid.images import FilePixels, ImageList
from fedmpi.reid.loading import batches
from fedmpi.reid.packed import PackedPixels
from fedmpi.reid.transforms import resize


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{n:04d}_c1.png" for n in range(9)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(path)
    paths[5].write_bytes(b"no image")
    return FilePixels(tuple(map(str, paths)), "a/train", 8.0)


@pytest.fixture
def decoded(monkeypatch):
    """Count what is really decoded."""
    seen = []
    original = images_module.decode
    monkeypatch.setattr(images_module, "decode", lambda path, limit: seen.append(path[-11:]) or original(path, limit))
    return seen


def packed(files, tmp_path, **changes):
    size = {"height": 32, "width": 16} | changes
    return PackedPixels(files, tmp_path / "cache", **size)


def assert_right(pixels, files, rows=range(9)):
    for place, row in enumerate(rows):
        if row == 5:
            with pytest.raises(DataError, match="a/train image 6: cannot be read"):
                pixels.read(place)
        else:
            assert np.array_equal(pixels.read(place), resize(files.read(row), 32, 16))


def test_the_same_pixels_decoded_once(files, tmp_path, decoded):
    pixels = packed(files, tmp_path)
    assert_right(pixels, files)
    decoded.clear()
    for reader in (pixels, packed(files, tmp_path), pickle.loads(pickle.dumps(pixels))):
        for row in (0, 8, 3):
            reader.read(row)
    assert decoded == []
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_parts_use_the_same_file(files, tmp_path, decoded):
    whole = packed(files, tmp_path)
    part = whole.take(np.array([7, 5, 2])).take(np.array([0, 1, 2]))
    assert len(part) == 3
    assert part.name(1) == "a/train image 6"
    assert_right(part, files, rows=(7, 5, 2))
    decoded.clear()
    whole.read(7)
    assert decoded == []


@pytest.mark.parametrize("place", [0, 4 * 9, 4 * 9 + 1500, -1])
def test_damaged_slots_are_decoded_again(files, tmp_path, place):
    pixels = packed(files, tmp_path)
    for row in (0, 8):
        pixels.read(row)
    content = bytearray(pixels.path.read_bytes())
    content[place] ^= 0x10
    pixels.path.write_bytes(content)
    for _ in range(2):
        assert_right(packed(files, tmp_path), files)


def test_a_file_of_another_length_is_made_anew(files, tmp_path):
    path = packed(files, tmp_path).path
    path.write_bytes(b"short")
    assert_right(packed(files, tmp_path), files)


def test_changed_images_and_sizes_get_files_of_their_own(files, tmp_path):
    first = packed(files, tmp_path)
    first.read(0)
    assert packed(files, tmp_path, width=8).path != first.path
    Image.new("RGB", (20, 40), (1, 2, 3)).save(files.paths[0])
    second = packed(files, tmp_path)
    assert second.path != first.path
    assert_right(second, files)


def test_only_its_owner_may_read_it(files, tmp_path):
    assert packed(files, tmp_path).path.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_used_is_named(files, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"data\.cache_dir: .*cache cannot be used"):
        packed(files, tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_and_without(files, tmp_path, workers):
    labels = np.arange(9)
    index = [np.array([0, 5, 3]), np.array([8, 1])]
    plain = list(batches(ImageList(labels, labels, files), index, 32, 16, cache_bytes=0))
    for _ in range(2):
        kept = ImageList(labels, labels, packed(files, tmp_path))
        for (a, good), (b, wanted) in zip(
            batches(kept, index, 32, 16, cache_bytes=0, workers=workers), plain, strict=True
        ):
            assert good.tolist() == wanted.tolist()
            assert a.equal(b)
        assert kept.bad == {5}
