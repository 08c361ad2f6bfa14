"""The clients of a run and their images: embedded synthetic people, folders of clients, or one folder split in K."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmpi.errors import DataError
from fedmpi.reid import synthetic
from fedmpi.reid.images import ClientData, FilePixels, ImageList, MemoryPixels, Pixels
from fedmpi.reid.layouts import Folder, find_folders, list_subset
from fedmpi.reid.packed import PackedPixels
from fedmpi.seeding import Stream, generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fedmpi.config import DataConfig

__all__ = ["ClientData", "FilePixels", "ImageList", "MemoryPixels", "Pixels", "client_names", "load_client", "repeats"]

IDE_TARGET = 20
"""Images per identity that identity-distributed equalisation aims at (METHOD section 2)."""


def client_names(data: DataConfig, seed: int) -> tuple[str, ...]:  # noqa: ARG001 - the same signature as load_client
    """Return the names of the clients in their order; cheap (folders are listed, no file is opened), so for every rank.

    Embedded clients and known benchmark folders come in the order of FedReID's tables, other folders by name, unless
    `data.clients` gives an order. With `data.split` = K the one client ``x`` becomes ``x-0`` ... ``x-(K-1)``.

    Raises
    ------
    DataError
        Missing or incomplete folders, unknown names in `data.clients`, or a split of more than one client.
    """
    sources = _sources(data)
    if data.split is None:
        return sources
    if len(sources) != 1:
        raise DataError(
            f"data.split: {data.split} parts of one client, but there are {len(sources)} ({', '.join(sources)}); "
            "select one with data.clients"
        )
    return tuple(f"{sources[0]}-{part}" for part in range(data.split))


def load_client(data: DataConfig, seed: int, index: int) -> ClientData:
    """Return client `index` of `client_names`: its image lists, with files left undecoded.

    Raises
    ------
    DataError
        The folder has no images, no identities, or an identity in both training and test.
    """
    names = client_names(data, seed)
    if data.split is None:
        return _load_source(data, seed, names[index])
    source = _sources(data)[0]
    if data.root is None:  # draw only what this client gets
        planned = synthetic.planned_client(data, seed, source)
        part = _part(planned, names[index], seed=seed, parts=data.split, index=index)
        return synthetic.drawn(part, data, seed, source)
    return _part(_load_source(data, seed, source), names[index], seed=seed, parts=data.split, index=index)


def _sources(data: DataConfig) -> tuple[str, ...]:
    chosen = tuple(data.clients)
    if data.root is None:
        return synthetic.selected(chosen)
    found = tuple(folder.name for folder in find_folders(Path(data.root)))
    unknown = [name for name in chosen if name not in found]
    if unknown:
        raise DataError(f"data.clients: no client {', '.join(unknown)} in {data.root}; there are {', '.join(found)}")
    return chosen or found


def _load_source(data: DataConfig, seed: int, name: str) -> ClientData:
    if data.root is None:
        return synthetic.draw_client(data, seed, name)
    folder = next(folder for folder in find_folders(Path(data.root)) if folder.name == name)
    train, query, gallery = (_list(folder, index, data) for index in range(3))
    client = ClientData(name, train, query, gallery)
    _check_disjoint(client, folder)
    return client


def _list(folder: Folder, index: int, data: DataConfig) -> ImageList:
    entries = list_subset(folder, index)
    files = FilePixels(
        tuple(entry.path for entry in entries),
        f"{folder.name}/{folder.subset(index).name}",
        float(data.max_megapixels),
        named=bool(data.name_images),
    )
    pixels: Pixels = files
    if data.cache_dir is not None:
        pixels = PackedPixels(files, Path(data.cache_dir), int(data.height), int(data.width))
    return ImageList(
        pids=np.array([entry.pid for entry in entries], dtype=np.int64),
        camids=np.array([entry.camid for entry in entries], dtype=np.int64),
        pixels=pixels,
    )


def _check_disjoint(client: ClientData, folder: Folder) -> None:
    """Refuse an identity in both training and test; 0 and -1 are no identities there but distractors and junk."""
    test = np.union1d(client.query.pids, client.gallery.pids)
    both = np.intersect1d(client.train.pids, test[test > 0])
    if both.size:
        raise DataError(
            f"{folder.path}: {both.size} identities are both in {folder.subset(0).name} and in query or "
            f"{folder.subset(2).name} (first: {both[0]}); training and test identities must be disjoint"
        )


def _part(whole: ClientData, name: str, *, seed: int, parts: int, index: int) -> ClientData:
    """Return part `index` of `parts`: every identity with all its images goes to exactly one part."""
    rng = generator(seed, Stream.DATA_SPLIT)
    train = _deal(rng, np.unique(whole.train.pids), parts, f"{whole.name}: training identities")[index]
    queried = np.unique(whole.query.pids)
    test = _deal(rng, queried, parts, f"{whole.name}: query identities")[index]
    others = np.setdiff1d(whole.gallery.pids, queried)
    extra = np.array_split(rng.permutation(others[others > 0]), parts)[index]
    shared = np.flatnonzero(whole.gallery.pids <= 0)[index::parts]
    own = np.flatnonzero(np.isin(whole.gallery.pids, np.concatenate([test, extra])))
    return ClientData(
        name,
        whole.train.take(np.flatnonzero(np.isin(whole.train.pids, train))),
        whole.query.take(np.flatnonzero(np.isin(whole.query.pids, test))),
        whole.gallery.take(np.union1d(own, shared)),
    )


def _deal(rng: np.random.Generator, pids: NDArray[np.int64], parts: int, what: str) -> list[NDArray[np.int64]]:
    if len(pids) < parts:
        raise DataError(f"data.split: {parts} parts, but {what} are only {len(pids)}")
    return np.array_split(rng.permutation(pids), parts)


def repeats(data: DataConfig, client: str, n_images: int, n_identities: int) -> int:
    """Return how often each training image of `client` counts in an epoch (IDE, METHOD section 2).

    ``off``: 1. ``auto``: round(20 / images per identity), at least 1, so that it acts on clients with few images per
    identity. A mapping gives the number per client and 1 for clients that it does not name.
    """
    if data.ide == "off":
        return 1
    if data.ide == "auto":
        return max(1, round(IDE_TARGET * n_identities / n_images)) if n_images else 1
    return int(data.ide.get(client, 1))


def identities(pids: Sequence[int] | NDArray[np.int64]) -> int:
    """Return the number of identities among `pids`, junk (-1) not counted."""
    values = np.unique(np.asarray(pids, dtype=np.int64))
    return int((values >= 0).sum())
