"""Who is who: ranks, the clients that they host, and the check that all ranks mean the same run."""

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from fedmpi.errors import LaunchError

SERVER = 0

# Launchers that started several processes tell each of them so; SLURM_NTASKS is not among them: it is set for the
# batch script as well, where one process is right.
WORLD_SIZE_VARIABLES = ("SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")


@dataclass(frozen=True)
class Ranks:
    """A private communicator and the placement of clients on its ranks.

    Attributes
    ----------
    comm
        A duplicate of the caller's communicator for the model traffic, so that no message of ours meets one of the
        caller's.
    control
        A second duplicate for statuses and measurements: a failure is reported past model messages that nobody will
        read.
    hosts
        Host rank of every client, in client order. The server hosts none when there is more than one rank.
    """

    comm: MPI.Intracomm
    control: MPI.Intracomm
    hosts: tuple[int, ...]

    @classmethod
    def create(cls, comm: MPI.Intracomm, clients: int) -> "Ranks":
        """*Collective*. Duplicate ``comm`` and place ``clients``; raise ``LaunchError`` when ranks would idle."""
        if comm.size > clients + 1:
            message = (
                f"{comm.size} ranks for {clients} clients: {comm.size - clients - 1} would idle; "
                f"use at most mpirun -n {clients + 1} (one server and one rank per client)"
            )
            raise LaunchError(message)
        return cls(comm.Dup(), comm.Dup(), place(clients, comm.size))

    @property
    def rank(self) -> int:
        """This process."""
        return self.comm.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.comm.size

    @property
    def is_server(self) -> bool:
        """Whether this rank aggregates."""
        return self.comm.rank == SERVER

    @property
    def clients(self) -> range:
        """All clients, in the order of every sum."""
        return range(len(self.hosts))

    @property
    def hosted(self) -> tuple[int, ...]:
        """The clients of this rank, ascending."""
        return tuple(c for c, host in enumerate(self.hosts) if host == self.comm.rank)

    def waves(self) -> list[list[int]]:
        """Return all clients in groups with at most one client per rank, ascending."""
        turns: dict[int, list[int]] = {}
        for client, host in enumerate(self.hosts):
            turns.setdefault(self.hosts[:client].count(host), []).append(client)
        return [turns[turn] for turn in sorted(turns)]

    def free(self) -> None:
        """*Collective*. Give the duplicates back."""
        self.comm.Free()
        self.control.Free()


def place(clients: int, size: int) -> tuple[int, ...]:
    """Return the host rank of each client: round robin over ranks 1.., or rank 0 for all when it is alone.

    *Not collective.* Round robin, because neighbours in a configuration are often the large ones.
    """
    return tuple(SERVER if size == 1 else 1 + client % (size - 1) for client in range(clients))


def check_one_world(size: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raise ``LaunchError`` when a launcher started several processes that each believe to be alone.

    *Not collective*: there is nobody else to be seen.
    """
    if size > 1:
        return
    for name in WORLD_SIZE_VARIABLES:
        value = environment.get(name, "")
        if value.isdigit() and int(value) > 1:
            message = (
                f"{name}={value}, but MPI sees one rank: these are {value} separate runs, not one world; start with "
                "the mpirun of the MPI that mpi4py loads, or with srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH)"
            )
            raise LaunchError(message)


def check_same(comm: MPI.Intracomm, **facts: str) -> None:
    """*Collective*. Raise ``LaunchError`` on every rank when a fact (config digest, version) differs."""
    digests = np.array([hashlib.blake2b(v.encode(), digest_size=8).digest() for v in facts.values()]).view("u8")
    everyone = np.empty((comm.size, digests.size), digests.dtype)
    comm.Allgather(digests, everyone)
    for column, name in enumerate(facts):
        odd = np.flatnonzero(everyone[:, column] != everyone[SERVER, column])
        if odd.size:
            message = (
                f"the ranks do not agree on the {name}: rank {odd[0]} differs from rank 0; "
                "give all the same files and environment"
            )
            raise LaunchError(message)


def find_nodes(ranks: Ranks) -> tuple[int, ...]:
    """*Collective*. Return the node of every rank, named by the lowest rank that shares memory with it."""
    node = ranks.control.Split_type(MPI.COMM_TYPE_SHARED, key=ranks.rank)
    lowest, everyone = np.array([ranks.rank]), np.empty(ranks.size, np.int64)
    node.Bcast(lowest)
    ranks.control.Allgather(lowest, everyone)
    node.Free()
    return tuple(int(name) for name in everyone)


def host_names(comm: MPI.Intracomm) -> list[str]:
    """*Collective*. Return the host name of every rank (set-up only; fixed 64 bytes a rank)."""
    mine = np.frombuffer(socket.gethostname().encode()[:64].ljust(64, b"\0"), np.uint8)
    everyone = np.empty((comm.size, 64), np.uint8)
    comm.Allgather(mine, everyone)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in everyone]
