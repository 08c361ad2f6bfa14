"""The order of an examination: every rank looks at itself, then rank 0 looks at the whole."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from fedmpi.doctor import launchers, plan, world
from fedmpi.doctor.findings import Finding, Part, as_json, from_json, merged, size
from fedmpi.doctor.machine import SHARED_BYTES_PER_RANK, SHARED_MEMORY, machine
from fedmpi.doctor.software import installation
from fedmpi.doctor.storage import storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpi4py import MPI

    from fedmpi.comm.devices import Seat
    from fedmpi.config import RunConfig

FEWER_RANKS = "start fewer ranks; each then hosts several clients, and the result is the same to the bit"


@dataclass(frozen=True)
class Question:
    """What is asked about: the run that CONFIG, --set and --out of a training would describe."""

    settings: RunConfig
    out: Path | None
    arguments: tuple[str, ...]
    trial: bool


@dataclass(frozen=True)
class Examination:
    """What rank 0 knows at the end; ``command`` starts the run that was asked about."""

    clients: tuple[str, ...]
    parts: list[Part]
    seats: list[Seat]
    findings: list[Finding]
    command: str

    @property
    def code(self) -> int:
        """The exit code: 1 when something would fail."""
        return int(any(finding.level == "error" for finding in self.findings))


@dataclass(frozen=True)
class Host:
    """One machine: its ranks, the cores that they may use, its memory and shared memory in bytes."""

    name: str
    ranks: int
    computing: int
    cores: int
    memory: int
    shared: int | None


def examine(question: Question) -> tuple[MPI.Intracomm | None, Examination | None]:
    """*Collective* where there are several ranks. Return the world, and on rank 0 what was found."""
    environment = dict(os.environ)  # as it is before an MPI library adds to it
    library, mpi = world.load_mpi()
    parts = [installation(), machine(), mpi]
    comm = world.start(library, mpi)
    names = plan.client_names(question.settings, mpi)
    seats: list[Seat] = []
    if comm is None:
        reports = [_report(parts)]
    else:
        from fedmpi.doctor import together  # noqa: PLC0415 - needs MPI

        placement, seats = together.placement(comm, question.settings, names)
        reports = together.gather(comm, _report([*parts, placement]))
        if comm.rank != 0:
            return comm, None
    run = plan.plan(question.settings, names)
    ranks = len(reports) if world.launched() else len(names) + 1
    trial = question.trial and not world.launched()
    launcher, mpirun = launchers.examine(library, ranks, environment if trial else None)
    memory, disk = plan.needs(run)
    hosts = crowding(_hosts(reports, ranks), memory, question.settings.compute.threads)
    parts += [launcher, run, storage(question.out, disk), hosts]
    everywhere = merged([[f for part in from_json(report["parts"]) for f in part.findings] for report in reports])
    here = [finding for part in parts[3:] for finding in part.findings]
    findings = sorted([*everywhere, *here], key=lambda finding: finding.level != "error")
    return comm, Examination(names, parts, seats, findings, command(mpirun, len(names) + 1, question))


def _report(parts: Sequence[Part]) -> dict[str, Any]:
    rss = psutil.Process().memory_info().rss
    return {"cores": sorted(os.sched_getaffinity(0)), "rss": rss, "parts": as_json(parts)}


def _hosts(reports: Sequence[dict[str, Any]], ranks: int) -> list[Host]:
    """Return the machines; when this process is alone, as if ``ranks`` were to run here."""
    facts = [next(part["facts"] for part in report["parts"] if part["title"] == "machine") for report in reports]
    hosts = []
    for name in dict.fromkeys(fact["host"] for fact in facts):
        members = [rank for rank, fact in enumerate(facts) if fact["host"] == name]
        count = len(members) if len(reports) > 1 else ranks
        cores = {core for rank in members for core in reports[rank]["cores"]}
        computing = count if count == 1 else count - (0 in members)
        # What these processes hold already is theirs to use.
        memory = min(facts[rank]["memory_available_bytes"] for rank in members) + sum(
            reports[r]["rss"] for r in members
        )
        shared = facts[members[0]].get("shared_memory_bytes")
        hosts.append(Host(name, count, computing, len(cores), memory, shared))
    return hosts


def crowding(hosts: Sequence[Host], memory: int, threads: int) -> Part:
    """Return what each host has for its ranks, and what is scarce there.

    ``memory`` is what a rank needs, roughly, in bytes; ``threads`` the CPU threads of a client.
    """
    part = Part("hosts")
    for host in hosts:
        need, busy = host.ranks * memory, host.computing * threads
        ranks = f"{host.ranks} rank{'s' * (host.ranks > 1)}"
        part.facts[host.name] = (
            f"{ranks}, {busy} computing thread{'s' * (busy > 1)} on {host.cores} core{'s' * (host.cores > 1)} "
            f"(room for compute.threads={max(1, host.cores // host.computing)}); "
            f"roughly {size(need)} of memory needed, {size(host.memory)} available"
        )
        if need > host.memory:
            part.warning(
                f"{ranks} on {host.name} need roughly {size(need)} of memory, but {size(host.memory)} are available",
                FEWER_RANKS,
            )
        if threads > 1 and busy > host.cores:
            part.warning(
                f"{busy} computing threads share {host.cores} cores of {host.name} and hinder each other",
                "set compute.threads to 1, or start fewer ranks",
            )
        if host.ranks > 1 and host.shared is not None and host.shared < host.ranks * SHARED_BYTES_PER_RANK:
            part.warning(
                f"{SHARED_MEMORY} of {host.name} has {size(host.shared)} free: {ranks} may end by a segmentation fault "
                "or a bus error",
                "make it larger (containers: --shm-size=1g), or start fewer ranks",
            )
    return part


def command(mpirun: Path | None, ranks: int, question: Question) -> str:
    """Return the command that starts the run, as one would type it; without an mpirun, that for one process."""
    launcher = [_shortest(mpirun), "-n", str(ranks)] if mpirun is not None else []
    return shlex.join([*launcher, _shortest(Path(sys.executable).with_name("fedmpi")), "train", *question.arguments])


def _shortest(program: Path) -> str:
    """Return the bare name of a program where that finds it, else its path."""
    found = shutil.which(program.name)
    return program.name if found and program.exists() and program.samefile(found) else str(program)
