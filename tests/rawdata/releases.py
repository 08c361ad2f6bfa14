"""Releases of the published data sets in small: their folders, file names, junk and distractors, written for tests."""

import json

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

PEOPLE = 12


def picture(pid, shot=0, size=(16, 32)):
    """Return a person as uint8[32, 16, 3]: shirt and trousers of its own colours, a little noise per shot."""
    rng = np.random.default_rng(pid + 2)
    shirt, trousers = rng.integers(30, 226, (2, 3))
    image = np.empty((size[1], size[0], 3))
    image[: size[1] // 2], image[size[1] // 2 :] = shirt, trousers
    noise = np.random.default_rng((pid + 2, shot)).normal(0, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


class Writer:
    """Writes numbered pictures, no two of them equal."""

    def __init__(self):
        self.count = 0

    def __call__(self, path, pid):
        self.count += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(pid, self.count)).save(path)


def market(raw, people=PEOPLE):
    """Write Market-1501's folders: half of the people train; junk, distractors and a Thumbs.db in the gallery."""
    write = Writer()
    for pid in range(1, people + 1):
        for camera in (1, 3, 6):
            for frame in range(2):
                folder = "bounding_box_train" if pid <= people // 2 else "bounding_box_test"
                write(raw / folder / f"{pid:04d}_c{camera}s1_{frame:06d}_0{frame + 1}.jpg", pid)
            if pid > people // 2:
                write(raw / "query" / f"{pid:04d}_c{camera}s1_000451_00.jpg", pid)
    for frame in range(3):
        write(raw / "bounding_box_test" / f"-1_c{frame + 1}s1_{frame:06d}_00.jpg", 300 + frame)
        write(raw / "bounding_box_test" / f"0000_c{frame + 4}s1_{frame:06d}_01.jpg", 400 + frame)
    (raw / "bounding_box_test" / "Thumbs.db").write_bytes(b"no image")
    (raw / "readme.txt").write_text("please cite")


def duke(raw, people=PEOPLE):
    """Write DukeMTMC-reID's folders: cameras to 8, distractors with numbers of their own that nobody asks for."""
    write = Writer()
    for pid in range(1, people + 1):
        for camera in (2, 5, 8):
            for frame in range(2):
                folder = "bounding_box_train" if pid <= people // 2 else "bounding_box_test"
                write(raw / folder / f"{pid:04d}_c{camera}_f00{frame}46182.jpg", pid)
            if people // 2 < pid < people:
                write(raw / "query" / f"{pid:04d}_c{camera}_f0099999.jpg", pid)


def cuhk03_folders(raw, people=PEOPLE):
    """Write CUHK03-NP as its authors give it: detected and labeled, PNG, two cameras."""
    write = Writer()
    for variant in ("detected", "labeled"):
        for pid in range(1, people + 1):
            for camera in (1, 2):
                for number in range(1, 4):
                    name = f"{pid:04d}_c{camera}_{number}.png"
                    if pid <= people // 2:
                        write(raw / variant / "bounding_box_train" / name, pid)
                    else:
                        write(raw / variant / ("query" if number == 1 else "bounding_box_test") / name, pid)


def cuhk03_mat(raw, people=(7, 5)):
    """Write cuhk-03.mat (MATLAB 7.3 as HDF5) with two camera pairs, some images missing, and both protocol files."""
    raw.mkdir(parents=True)
    with h5py.File(raw / "cuhk-03.mat", "w") as file:
        for variant in ("detected", "labeled"):
            pairs = [_pair(file, variant, pair, count) for pair, count in enumerate(people, start=1)]
            cell = file.create_dataset(variant, (1, len(pairs)), dtype=h5py.ref_dtype)
            cell[0] = [pair.ref for pair in pairs]
    for variant in ("detected", "labeled"):
        _protocol(raw / f"cuhk03_new_protocol_config_{variant}.mat", people)


def exists(person, number):
    """Whether this person (from 1) has image `number` (1-10): some have fewer than five in a camera."""
    return not (number == 10 and person % 2)


def _pair(file, variant, pair, count):
    cells = file.create_dataset(f"#refs#/{variant}{pair}", (10, count), dtype=h5py.ref_dtype)
    for person in range(1, count + 1):
        for number in range(1, 11):
            name = f"#refs#/{variant}{pair}_{person}_{number}"
            there = exists(person, number)
            pixels = picture(100 * pair + person, number).T if there else np.zeros(2, np.uint64)  # empty in MATLAB
            cells[number - 1, person - 1] = file.create_dataset(name, data=pixels).ref
    return cells


def _protocol(path, people):
    names, labels, parts = [], [], ([], [], [])
    everybody = [(pair, person) for pair, count in enumerate(people, start=1) for person in range(1, count + 1)]
    for label, (pair, person) in enumerate(everybody, start=1):
        for number in (n for n in range(1, 11) if exists(person, n)):
            names.append(f"{pair}_{person:03d}_{1 if number <= 5 else 2}_{number:02d}.png")
            labels.append(label)
            part = 0 if label <= len(everybody) // 2 else 1 if number in (1, 6) else 2
            parts[part].append(len(names))  # MATLAB counts from 1
    filelist = np.empty((len(names), 1), dtype=object)
    filelist[:, 0] = names
    indices = {
        f"{key}_idx": np.array(part)[:, None] for key, part in zip(("train", "query", "gallery"), parts, strict=True)
    }
    savemat(path, {"filelist": filelist, "labels": np.array(labels)[:, None], **indices})


def cuhk01(raw, people=PEOPLE):
    """Write CUHK01: two images of each camera."""
    write = Writer()
    for pid in range(1, people + 1):
        for view in range(1, 5):
            write(raw / "campus" / f"{pid:04d}{view:03d}.png", pid)


def prid(raw, shared=8, only_a=4, only_b=5):
    """Write PRID2011: shared persons, then those of one camera, both from 201; 3 or 12 images each."""
    write = Writer()
    for camera, extra in (("cam_a", only_a), ("cam_b", only_b)):
        for number in [*range(1, shared + 1), *range(201, 201 + extra)]:
            look = number + (1000 if camera == "cam_b" and number > 200 else 0)
            write(raw / "prid_2011/single_shot" / camera / f"person_{number:04d}.png", look)
            for frame in range(1, 13 if number % 2 else 4):
                write(raw / "prid_2011/multi_shot" / camera / f"person_{number:04d}" / f"{frame:04d}.png", look)


def viper(raw, people=PEOPLE):
    """Write VIPeR: numbers with gaps, the angle behind them."""
    write = Writer()
    for pid in range(people):
        write(raw / "VIPeR/cam_a" / f"{3 * pid:03d}_{45 * (pid % 3)}.bmp", pid)
        write(raw / "VIPeR/cam_b" / f"{3 * pid:03d}_{90 + 45 * (pid % 2)}.bmp", pid)


def threedpes(raw, people=PEOPLE):
    """Write 3DPeS: persons of one to four views with one to three frames each."""
    write = Writer()
    for pid in range(1, people + 1):
        for view in range(1, 2 + pid % 4):
            for frame in range(1, 2 + (pid + view) % 3):
                write(raw / "RGB" / f"{pid}_{view}_FRAME_{25 * frame}_RGB.bmp", pid)


def ilids(raw, people=PEOPLE):
    """Write i-LIDS: two to five images a person."""
    write = Writer()
    for pid in range(1, people + 1):
        for number in range(1, 3 + pid % 4):
            write(raw / "i-LIDS_Pedestrian/Persons" / f"{pid:04d}{number:03d}.jpg", pid)


def ilids_vid(raw, people=PEOPLE):
    """Write the single-shot part of iLIDS-VID; numbers have gaps."""
    write = Writer()
    for pid in range(1, 2 * people, 2):
        for camera in ("cam1", "cam2"):
            write(raw / "i-LIDS-VID/images" / camera / f"person{pid:03d}" / f"{camera}_person{pid:03d}.png", pid)


def msmt17(raw, people=PEOPLE, version=1):
    """Write MSMT17: identities counted from 0 in train and test apart, two-digit cameras, four lists."""
    write = Writer()
    folders = ("train", "test") if version == 1 else ("mask_train_v2", "mask_test_v2")
    lists = {name: [] for name in ("train", "val", "query", "gallery")}
    for part, folder in enumerate(folders):
        for pid in range(people // 2):
            for n, camera in enumerate((1, 9, 14, 15)):
                for frame in range(2):
                    name = f"{pid:04d}/{pid:04d}_{2 * n + frame:03d}_{camera:02d}_0303morning_000{frame}_0.jpg"
                    write(raw / f"MSMT17_V{version}" / folder / name, 50 * part + pid)
                    key = ("val" if n == 3 else "train", "query" if n < 2 and not frame else "gallery")[part]
                    lists[key].append(f"{name} {pid}\n")
    for name, lines in lists.items():
        (raw / f"MSMT17_V{version}" / f"list_{name}.txt").write_text("".join(lines))


def dgd(raw, people=PEOPLE):
    """Write a folder in the DGD format, as CUHK01 in it: cam_0, cam_1, meta.json, split.json."""
    write = Writer()
    identities = []
    for pid in range(people):
        cameras = [[f"cam_{c}/{pid:05d}_{n:05d}.png" for n in range(2)] for c in range(2)]
        for name in (name for names in cameras for name in names):
            write(raw / name, pid)
        identities.append(cameras)
    (raw / "meta.json").write_text(
        json.dumps({"name": "x", "shot": "multiple", "num_cameras": 2, "identities": identities})
    )
    train, test = list(range(0, people, 2)), list(range(1, people, 2))
    (raw / "split.json").write_text(json.dumps({"trainval": train, "test_probe": test, "test_gallery": test}))


RELEASES = {
    "duke": duke,
    "market": market,
    "cuhk03-np-detected": cuhk03_folders,
    "prid": prid,
    "cuhk01": cuhk01,
    "viper": viper,
    "3dpes": threedpes,
    "ilids": ilids,
    "msmt17": msmt17,
    "ilids-vid": ilids_vid,
    "cuhk03-np-labeled": cuhk03_mat,
}
"""A writer for each data set; the first nine are those of FedReID's tables and MSMT17."""
