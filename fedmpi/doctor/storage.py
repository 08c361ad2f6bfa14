"""The place of the run folder: that it can be written, that HDF5 works there, and that there is room."""

import os
import tempfile
from pathlib import Path

import psutil

from fedmpi.doctor.findings import Part, size
from fedmpi.errors import FedmpiError

ADVICE = "choose another --out, or make room"


def storage(out: Path | None, needed: int) -> Part:
    """Return where a run would write, after writing and reading a small run file on that disk.

    ``needed`` is what the final models of the run take, in bytes.
    """
    part = Part("run folder")
    place = (out or Path("runs")).absolute()
    part.facts["folder"] = str(place) if out else f"{place}/<name>-<time>"
    base = next(path for path in (place, *place.parents) if _exists(path))
    if base.is_dir() and out is not None and base == place and os.access(base, os.R_OK) and any(base.iterdir()):
        part.error(f"{out} is not empty, and a run never overwrites another", "choose another --out")
    if not base.is_dir() or not os.access(base, os.W_OK | os.X_OK):
        part.error(f"{base} is not a folder that this user may write to", "choose another --out")
        return part
    part.facts["free_bytes"] = free(base)
    part.facts["final_models_bytes"] = needed
    if free(base) < needed:
        part.error(f"{base} has {size(free(base))} free, the models need {size(needed)}", ADVICE)
    part.facts["hdf5_trial"] = _try(base, part)
    return part


def _exists(path: Path) -> bool:
    """Return whether a path exists as far as this user can see."""
    try:
        return path.exists()
    except OSError:  # in a folder that this user may not enter
        return False


def free(folder: Path) -> int:
    """Return the free bytes of the disk that holds ``folder``."""
    return int(psutil.disk_usage(str(folder)).free)


def _try(base: Path, part: Part) -> str:
    """Write and read a run file below ``base``; nothing of it remains."""
    try:
        with tempfile.TemporaryDirectory(prefix=".fedmpi-doctor-", dir=base) as folder:
            write_and_read(Path(folder))
    except (FedmpiError, OSError, RuntimeError, ImportError) as error:
        part.error(
            f"a run file cannot be written and read in {base}: {error}", "choose another --out, or repair this disk"
        )
        return "failed"
    return "a run file was written and read back"


def write_and_read(folder: Path) -> None:
    """Write a run file of one round into ``folder`` and read it back.

    Raises
    ------
    FedmpiError
        When the file cannot be written or read.
    OSError
        When what comes back is not what was written.
    """
    import numpy as np  # noqa: PLC0415 - this and h5py may not load

    from fedmpi.record import RunWriter, empty_messages, open_run  # noqa: PLC0415
    from fedmpi.record.schema import GROUPS, Variable  # noqa: PLC0415

    def zeros(group: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        required: list[Variable] = [v for v in GROUPS[group] if v.default is None and not v.name.startswith("bytes_")]
        return {variable.name: np.zeros(shape, variable.on_disk) for variable in required}

    with RunWriter.create(folder / "run.h5", ["client"], ["layer"], {"purpose": "a trial"}, rounds=1) as writer:
        writer.commit(0, zeros("rounds", ()), zeros("clients", (1,)), {}, empty_messages(0))
    with open_run(folder) as run:
        if (run.rounds, run.status) != (1, "finished"):
            raise OSError(f"{run.rounds} rounds came back with status {run.status}, not 1 that is finished")
