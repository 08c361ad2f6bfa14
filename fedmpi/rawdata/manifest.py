"""``manifest.json``: the checksum of every file of a client, so that two machines can prove to have the same data.

It holds names relative to the client's folder, and nothing about the machine. ``digest`` stands for the whole: the
sha256 of the lines ``<sha256>  <name>`` in sorted order of the names, as ``sha256sum`` prints them.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmpi.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """The content of a ``manifest.json``.

    Attributes
    ----------
    dataset
        Name in the table of facts, empty when unknown.
    seed, plan
        What the client was prepared with; None where it was not prepared by fedmpi.
    files
        (sha256 in hexadecimal, bytes) by name.
    """

    dataset: str
    seed: int | None
    plan: str | None
    files: Mapping[str, tuple[str, int]]

    def digest(self) -> str:
        """Return the sha256 that stands for all files."""
        lines = "".join(f"{checksum}  {name}\n" for name, (checksum, _) in sorted(self.files.items()))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def checksums(client: Path) -> dict[str, tuple[str, int]]:
    """Return (sha256, bytes) of all regular files below ``pytorch``, hidden ones left out."""
    files = sorted(f for f in (client / "pytorch").rglob("*") if f.is_file() and f.name[0] != ".")
    return {file.relative_to(client).as_posix(): checksum(file) for file in files}


def checksum(file: Path) -> tuple[str, int]:
    """Return sha256 (hexadecimal) and number of bytes of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return digest.hexdigest(), stream.tell()


def write_manifest(
    client: Path,
    *,
    dataset: str,
    seed: int | None = None,
    plan: str | None = None,
    files: Mapping[str, tuple[str, int]] | None = None,
) -> Manifest:
    """Write the manifest of a client's folder and return it; `files` are computed unless given."""
    manifest = Manifest(dataset, seed, plan, checksums(client) if files is None else files)
    content = {
        "fedmpi_manifest": VERSION,
        "dataset": dataset,
        "seed": seed,
        "plan": plan,
        "digest": manifest.digest(),
        "files": {name: {"sha256": sha, "bytes": size} for name, (sha, size) in sorted(manifest.files.items())},
    }
    write_atomically(client / NAME, (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode("ascii"))
    return manifest


def read_manifest(client: Path) -> Manifest | None:
    """Return the manifest of a client's folder, None when there is none.

    Raises
    ------
    DataError
        The file is damaged, of another version, or its digest does not fit its list.
    """
    path = client / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["fedmpi_manifest"]
        files = {str(name): (str(f["sha256"]), int(f["bytes"])) for name, f in content["files"].items()}
        manifest = Manifest(str(content["dataset"]), content["seed"], content["plan"], files)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}); remove it, or copy the client anew") from error
    if version != VERSION or content.get("digest") != manifest.digest():
        raise DataError(f"{path}: of another version, or changed after it was written")
    return manifest


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or absent."""
    temporary = path.with_name(f".{path.name}.unfinished")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
