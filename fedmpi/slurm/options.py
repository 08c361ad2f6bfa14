"""What can be said about a job: the options of ``fedmpi job``, checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from fedmpi.errors import ConfigError

LAUNCHERS: Final = {
    "srun-pmi2": ("srun --mpi=pmi2", "MPICH, Intel MPI, MVAPICH"),
    "srun-pmix": ("srun --mpi=pmix", "Open MPI"),
    "mpirun": ('mpirun -n "$SLURM_NTASKS"', "the mpirun of the MPI that mpi4py loads"),
}
"""How ranks can be started: command, and whose."""
_TIME: Final = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)|(\d+)")
"""Not all that SLURM takes: 8:00 would be eight minutes, which few expect."""
_WORD: Final = re.compile(r"[\w.,:+@%&|*/=\[\]()-]+")
"""What may stand in a line #SBATCH: there is no quoting there, so no blanks and no quotes."""


def _about(default: Any, text: str) -> Any:  # noqa: ANN401 - as dataclasses.field itself
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class JobOptions:
    """Everything about a job that the run's configuration does not say.

    Raises
    ------
    ConfigError
        On construction, in one line, when a value cannot be right.
    """

    name: str | None = _about(None, "Name of the job; default: that of the run.")
    ranks: int | None = _about(None, "MPI ranks; default: one per client and a server.")
    nodes: int = _about(1, "Nodes; the ranks are spread evenly.")
    gpus: int | None = _about(None, "GPUs per node; default: one per client there, 0 when compute.device is cpu.")
    cpus: int | None = _about(None, "Cores per rank; default: compute.threads + data.workers.")
    memory: str | None = _about(None, "Memory per node, as 64G; default: the site's.")
    time: str = _about("08:00:00", "Time limit: minutes, h:mm:ss or d-hh:mm:ss.")
    partition: str | None = _about(None, "Partition.")
    account: str | None = _about(None, "Account that pays.")
    qos: str | None = _about(None, "Quality of service.")
    constraint: str | None = _about(None, "Features that the nodes must have.")
    launcher: str = _about("srun-pmi2", "What starts the ranks: srun-pmi2 (MPICH), srun-pmix (Open MPI) or mpirun.")
    setup: tuple[str, ...] = _about(
        ("source .venv/bin/activate",), "Shell line that makes `fedmpi` available; may be given many times."
    )
    container: str | None = _about(None, "Apptainer image that holds fedmpi; replaces --setup.")
    seeds: tuple[int, ...] = _about((), "Make a job array with one run per seed, as 0,1,2.")
    vary: tuple[str, ...] = _about(
        (), "Make a job array: the run as it is, and one with this SECTION.KEY=VALUE; may be given many times."
    )
    notice: int = _about(120, "Seconds before the time limit at which the run is told to stop.")
    restarts: int = _about(100, "How often the job may be put back into the queue to go on.")

    def __post_init__(self) -> None:
        for name in ("ranks", "nodes", "cpus"):
            _check(name, getattr(self, name), least=1)
        for name in ("gpus", "notice", "restarts"):
            _check(name, getattr(self, name), least=0)
        for name in ("name", "memory", "partition", "account", "qos", "constraint"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                raise ConfigError(f"--{name} must be one word without blanks or quotes, got {value!r}")
        if not _TIME.fullmatch(self.time):
            raise ConfigError(f"--time must be minutes, h:mm:ss or d-hh:mm:ss, got {self.time!r}")
        if self.notice >= _seconds(self.time):
            raise ConfigError(f"--notice {self.notice}: --time {self.time} is over before, and no round would be done")
        if self.launcher not in LAUNCHERS:
            raise ConfigError(f"--launcher must be one of {', '.join(LAUNCHERS)}, got {self.launcher!r}")
        if any("\n" in line for line in self.setup):
            raise ConfigError("--setup must be one line; it may be given many times")
        if len(set(self.seeds)) < len(self.seeds) or any(seed < 0 for seed in self.seeds):
            raise ConfigError(f"--seeds must be different whole numbers from 0 on, got {list(self.seeds)}")


def _seconds(time: str) -> int:
    """Return the seconds of a time limit that has one of the right forms."""
    days, hours, minutes, seconds, whole = (int(part or 0) for part in _TIME.fullmatch(time).groups())  # type: ignore[union-attr]
    return ((days * 24 + hours) * 60 + minutes + whole) * 60 + seconds


def _check(name: str, value: int | None, *, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"--{name} must be at least {least}, got {value}")


def option_names() -> tuple[str, ...]:
    """Return the names of all options."""
    return tuple(f.name for f in fields(JobOptions))


def options(given: Mapping[str, Any]) -> JobOptions:
    """Return options from values by name; None = the default.

    Raises
    ------
    ConfigError
        For an unknown name, listing the valid ones, or an impossible value.
    """
    unknown = [name for name in given if name not in option_names()]
    if unknown:
        raise ConfigError(f"unknown option '{unknown[0]}' of a job; valid: {', '.join(option_names())}")
    return replace(JobOptions(), **{name: value for name, value in given.items() if value is not None})
