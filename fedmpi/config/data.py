"""Which images the clients hold: ``data``."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from fedmpi.config.base import Number, OptionalPath, Problem, Section, Switch, Text, Whole, key


def _ide(value: object) -> object:
    """Accept ``off``, ``auto`` or a mapping of clients to repetitions; False is what YAML 1.1 makes of ``off``."""
    words = {"off": "off", "false": "off", "no": "off", "auto": "auto"}
    word = str(value).lower()
    if isinstance(value, str | bool) and word in words:
        return words[word]
    if not isinstance(value, Mapping):
        raise PydanticCustomError("ide", "must be off, auto or a mapping such as {viper: 10, ilids: 5}")
    for client, times in value.items():
        if not isinstance(times, int) or isinstance(times, bool) or times < 1:
            raise PydanticCustomError(
                "ide_times",
                "repetitions of '{client}' must be a whole number of at least 1, got {times}",
                {"client": str(client), "times": repr(times)},
            )
    return dict(value)


MOST_IDENTITIES = 100.0
"""Largest factor on the embedded people: they are numbered with four digits."""


class SyntheticConfig(Section):
    """The embedded drawn people, used when ``data.root`` is null."""

    identities: Number = key(
        1.0,
        "Factor on the number of identities of every client; at least 2 identities remain.",
        source="fedmpi",
        unit="factor",
        gt=0.0,
        le=MOST_IDENTITIES,
    )
    test_identities: Number = key(
        1.0,
        "Further factor on the number of test identities alone (query and gallery): more of them make scores less "
        "noisy. Training images and the test identities that are there already stay as they are.",
        source="fedmpi",
        unit="factor",
        gt=0.0,
        le=MOST_IDENTITIES,
    )
    images: Number = key(
        1.0,
        "Factor on the number of images per identity and camera; at least 1 image remains.",
        source="fedmpi",
        unit="factor",
        gt=0.0,
        le=100.0,
    )
    test_images: Number = key(
        1.0,
        "Further factor on the number of gallery images per identity and camera; at least 1 image remains. Fewer make "
        "evaluation cheaper.",
        source="fedmpi",
        unit="factor",
        gt=0.0,
        le=100.0,
    )
    difficulty: Number = key(
        1.0,
        "Factor on what separates cameras and blurs identities: light, colour cast, blur, noise, crop jitter, "
        "occlusion. 0 = none of it.",
        source="fedmpi",
        unit="factor",
        ge=0.0,
        le=10.0,
    )

    def problems(self) -> Iterator[Problem]:
        """Check that the test identities have numbers to go by."""
        if self.identities * self.test_identities > MOST_IDENTITIES:
            yield "test_identities", f"times identities must be at most {MOST_IDENTITIES:g}"


class DataConfig(Section):
    """Images of the clients."""

    root: OptionalPath = key(
        None,
        "Folder that holds one folder per client, in the processed layout "
        "`<client>/pytorch/{train_all,query,gallery}/<identity>/<image>` or as Market-1501-style raw folders. "
        "null = the embedded synthetic people. A relative path starts at the working directory, `~` is expanded.",
        source="fedmpi",
    )
    clients: tuple[Text, ...] = key(
        (),
        "Client folders below `data.root` (or names of embedded clients), in the order of the client numbers. "
        "Empty = all that are found, sorted by name; all eight embedded ones.",
        source="fedmpi",
    )
    split: Whole | None = key(
        None,
        "Split one folder, or one embedded client, into this many clients by identity, so that a single data set makes "
        "a federation. "
        "null = one client per folder.",
        source="fedmpi",
        unit="clients",
        ge=1,
        le=4096,
    )
    height: Whole = key(256, "Height of the network's input.", source="FedCAPR code", unit="pixel", ge=32, le=1024)
    width: Whole = key(128, "Width of the network's input.", source="FedCAPR code", unit="pixel", ge=16, le=1024)
    workers: Whole = key(
        0,
        "Processes per rank that decode and augment images. 0 = in the rank itself. Never changes results.",
        source="fedmpi",
        unit="processes",
        ge=0,
        le=256,
    )
    cache_dir: OptionalPath = key(
        None,
        "Folder, best on a disk of the node, for resized images of data.root: one file per list, which fills as images "
        "are read and serves all ranks, workers and later runs. It holds images of people. null = none. Never changes "
        "results. A relative path starts at the working directory, `~` is expanded.",
        source="fedmpi",
        output_only=True,
    )
    name_images: Switch = key(
        default=False,
        description="Name unreadable images by their files in messages. false = by their numbers, as file names hold "
        "identity, camera and time, and messages end in logs; `fedmpi data verify` names them.",
        source="fedmpi",
        output_only=True,
    )
    labels: Switch = key(
        default=False,
        description="Train on the true identities, not on clusters. false = unsupervised, as in FedCAPR and FedKLPR.",
        source="FedCAPR code",
    )
    max_bad_share: Number = key(
        0.01,
        "Largest share of unreadable images of a client with which the run goes on without them; more is an error.",
        source="fedmpi",
        unit="share",
        ge=0.0,
        le=1.0,
    )
    max_megapixels: Number = key(
        8.0,
        "Images whose header announces more pixels than this are refused unread (decompression bombs).",
        source="fedmpi",
        unit="megapixel",
        gt=0.0,
        le=1000.0,
    )
    ide: Annotated[Literal["off", "auto"] | Mapping[str, int], BeforeValidator(_ide)] = key(
        "off",
        "Identity-distributed equalisation: how often each training image of a small client is repeated per epoch. "
        "off = never; auto = round(20 / images per identity), at least 1; or a mapping of clients to repetitions "
        "(FedCAPR lists ilids 5, cuhk03 2, prid 2, viper 10, cuhk01 5, 3dpes 4; its live configuration has it off).",
        source="FedCAPR code",
        unit="repetitions",
        type_text="off | auto | mapping of client to whole number",
    )
    synthetic: SyntheticConfig = SyntheticConfig()

    def problems(self) -> Iterator[Problem]:
        """Check names of folders, the one folder of a split, and the clients of the repetitions."""
        for name, times in Counter(self.clients).items():
            if times > 1:
                yield "clients", f"names '{name}' {times} times"
            if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
                yield "clients", f"must be folder names below data.root, got '{name}'"
        if self.split is not None and self.root is None and len(self.clients) != 1:
            yield "split", "needs data.root, the folder to split, or one embedded client in data.clients"
        elif self.split is not None and len(self.clients) > 1:
            yield "split", f"splits one folder, but data.clients names {len(self.clients)}"
        if isinstance(self.ide, Mapping) and self.clients and self.split is None:
            for name in self.ide:
                if name not in self.clients:
                    yield "ide", f"names '{name}', which is not in data.clients (valid: {', '.join(self.clients)})"
