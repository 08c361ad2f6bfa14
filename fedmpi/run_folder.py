"""The folder of a run: what is in it, and that nothing old is ever overwritten."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedmpi.errors import ConfigError


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path

    @property
    def record(self) -> Path:
        """The HDF5 run file."""
        return self.path / "run.h5"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """The figures of the finished run; present only when the run finished."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints; absent before the first and once the run is finished."""
        return self.path / "checkpoints"

    @property
    def global_model(self) -> Path:
        """The final global model."""
        return self.path / "global.safetensors"

    def client_model(self, name: str) -> Path:
        """The final personalized model of one client."""
        return self.path / "clients" / f"{name}.safetensors"


def create(name: str, out: Path | None) -> RunFolder:
    """Make the folder ``out``, or ``runs/<name>-<UTC time>`` under the working directory.

    Raises
    ------
    ConfigError
        When ``out`` exists and is not an empty folder, or cannot be made.
    """
    path = out or Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path if out else _unused(path)
        path.mkdir(exist_ok=out is not None)
        if not _is_unused(path):
            message = f"{path} is not empty; a run never overwrites another: choose a new --out"
            raise ConfigError(message)
        (path / "clients").mkdir(exist_ok=True)
    except OSError as error:
        message = f"cannot make the run folder {path}: {error.strerror}; choose another --out"
        raise ConfigError(message) from error
    return RunFolder(path)


def _is_unused(path: Path) -> bool:
    """Return whether a folder holds nothing, or only what a run leaves that was killed while it made its folder."""
    return all(
        (item.name == "clients" and item.is_dir() and not any(item.iterdir())) or item.name.startswith(".config.yaml.")
        for item in path.iterdir()
    )


def reopen(path: Path) -> RunFolder:
    """Return the folder of a run that has begun.

    Raises
    ------
    ConfigError
        When there is none.
    """
    if not (path / "config.yaml").is_file():
        reason = "holds no config.yaml" if path.is_dir() else "is no folder"
        message = f"{path} {reason}: not a run that can be resumed (--resume takes a run folder, or auto)"
        raise ConfigError(message)
    return RunFolder(path)


def begun(name: str, out: Path | None) -> list[RunFolder]:
    """Return the runs that may be continued, newest first: the one in ``out``, or those in ``runs/<name>-<time>``."""
    if out is not None:
        paths = [out]
    else:
        pattern = re.compile(re.escape(name) + r"-(\d{8}T\d{6})(?:-(\d+))?")
        named = [(m[1], int(m[2] or 1), p) for p in Path("runs").glob("*") if (m := pattern.fullmatch(p.name))]
        paths = [path for *_, path in sorted(named, reverse=True)]
    return [RunFolder(path) for path in paths if (path / "config.yaml").is_file()]


def _unused(path: Path) -> Path:
    """Return ``path``, or the first of path-2, path-3, ... that does not exist: two runs may start in one second."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent, whatever happens."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
