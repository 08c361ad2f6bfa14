"""The folder of a run: what is in it, and that nothing old is ever overwritten."""

import json
import os
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
        if any(path.iterdir()):
            message = f"{path} is not empty; a run never overwrites another: choose a new --out"
            raise ConfigError(message)
        (path / "clients").mkdir()
    except OSError as error:
        message = f"cannot make the run folder {path}: {error.strerror}; choose another --out"
        raise ConfigError(message) from error
    return RunFolder(path)


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
