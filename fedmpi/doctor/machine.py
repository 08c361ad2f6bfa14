"""The machine as this process sees it: cores, memory, shared memory, GPUs."""

import contextlib
import os
import socket
from pathlib import Path

import psutil

from fedmpi.doctor.findings import Part, size

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where MPI libraries put the memory that ranks of a node share
SHARED_BYTES_PER_RANK = 6_000_000
"""What MPICH 5 was seen to take there (48 MB for nine ranks), rounded up; with less it ends by a segmentation fault."""
CGROUP = Path("/sys/fs/cgroup")


def machine() -> Part:
    """Return what this process may use; under a scheduler that is less than the machine has."""
    part = Part("machine")
    part.facts["host"] = socket.gethostname()
    part.facts["cores"] = cores()
    part.facts["cores_in_all"] = os.cpu_count()
    part.facts["memory_bytes"] = memory_limit()
    part.facts["memory_available_bytes"] = min(memory_limit(), psutil.virtual_memory().available)
    if SHARED_MEMORY.is_dir():
        part.facts["shared_memory_bytes"] = psutil.disk_usage(str(SHARED_MEMORY)).free
    _gpus(part)
    return part


def cores() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def memory_limit(cgroup: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes of memory that this process may use: the machine's, or less by a limit of its control groups."""
    limits = [psutil.virtual_memory().total]
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            number, _, path = line.split(":", 2)
            if number == "0":
                limits += _limits(cgroup, path)
    return min(limits)


def _limits(cgroup: Path, path: str) -> list[int]:
    """Return the limits of a control group and of those around it."""
    inner = cgroup / path.strip("/")
    found = []
    for folder in (inner, *inner.parents):
        if not folder.is_relative_to(cgroup):
            break
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int((folder / "memory.max").read_text()))
    return found


def _gpus(part: Part) -> None:
    """Note the GPUs that torch sees, and a GPU of the machine that it does not see."""
    try:
        import torch  # noqa: PLC0415 - slow, and may not load
    except Exception:  # noqa: BLE001 - reported with the installation
        return
    part.facts["gpus"] = torch.cuda.device_count()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        part.facts[f"gpu_{index}"] = f"{properties.name}, {size(properties.total_memory)}{_driver(index)}"
    if not torch.cuda.device_count() and Path("/dev/nvidiactl").exists():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        part.warning(
            f"this machine has an NVIDIA GPU, but torch {torch.__version__}, built {built}, sees none "
            f"(CUDA_VISIBLE_DEVICES: {visible if visible is not None else 'not set'})",
            "ask the scheduler for a GPU, or install a torch that fits the driver (nvidia-smi shows it)",
        )


def _driver(index: int) -> str:
    """Return driver and memory in use by anybody, where the extra ``gpu`` (nvidia-ml-py) can tell."""
    try:
        import pynvml  # noqa: PLC0415 - optional
        import torch  # noqa: PLC0415 - slow

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        used = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid)).used
        return f", {size(used)} in use, driver {pynvml.nvmlSystemGetDriverVersion()}"
    except Exception:  # noqa: BLE001 - only decoration
        return ""
