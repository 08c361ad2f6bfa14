"""The world of ranks as this process sees it: the MPI library, and how this process was launched."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedmpi.doctor.findings import Part
from fedmpi.doctor.launchers import family
from fedmpi.errors import LaunchError

if TYPE_CHECKING:
    from mpi4py import MPI


INSTALL = "pip install 'fedmpi[mpich]' (in a checkout: pip install -e '.[mpich]'), or load your cluster's MPI module"


def load_mpi() -> tuple[str, Part]:
    """Load mpi4py without starting MPI; return the library's version text, empty if there is none."""
    part = Part("MPI")
    try:
        import mpi4py  # noqa: PLC0415 - optional here

        if "mpi4py.MPI" not in sys.modules:
            mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI  # noqa: PLC0415
    except (ImportError, RuntimeError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        part.facts["library"] = None
        part.error(f"mpi4py finds no MPI library ({reason}); without one nothing can run, not even one rank", INSTALL)
        return "", part
    text = MPI.Get_library_version()
    part.facts["library"] = " ".join(text.splitlines()[0].replace("Version:", "").split()).split(", package")[0]
    part.facts["mpi_standard"] = ".".join(map(str, MPI.Get_version()))
    return text, part


def start(text: str, part: Part, environment: Mapping[str, str] = os.environ) -> MPI.Intracomm | None:
    """Start MPI and look at the world; return it, or None where starting would end this process.

    MPICH aborts when Open MPI's launcher starts it; the other way round every rank becomes a world of its own.
    """
    if not text:
        return None
    size = environment.get("OMPI_COMM_WORLD_SIZE")
    if size and family(text) != "Open MPI":
        part.error(
            f"Open MPI's launcher started this process as one of {size}, but mpi4py loads {part.facts['library']}",
            "use the mpirun of the MPI that mpi4py loads",
        )
        return None
    from mpi4py import MPI  # noqa: PLC0415 - found by `library`

    if not MPI.Is_initialized():
        MPI.Init_thread()
    part.facts["device_memory"] = device_memory()
    _singleton(MPI.COMM_WORLD, part, environment)
    return MPI.COMM_WORLD


def device_memory() -> str:
    """Return whether MPI takes pointers to GPU memory; fedmpi goes through the host's, whatever the answer."""
    from fedmpi.comm.device_memory import takes_device_memory  # noqa: PLC0415 - needs MPI

    return {True: "taken", False: "not taken", None: "unknown"}[takes_device_memory()]


def _singleton(comm: MPI.Intracomm, part: Part, environment: Mapping[str, str]) -> None:
    from fedmpi.comm import check_one_world  # noqa: PLC0415 - needs MPI

    part.facts["ranks"] = comm.size
    try:
        check_one_world(comm.size, environment)
    except LaunchError as error:
        part.error(str(error))


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a launcher started this process; a trial inside a trial would only confuse it."""
    return any(
        name in environment for name in ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    )


def outer_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the rank that the launcher gave this process, 0 without one; for worlds that MPI does not see."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return 0
