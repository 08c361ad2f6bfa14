"""Dense ways of exchanging, each as good as it can be written: what a sparse exchange has to beat.

All sum in float32 with torch and wait like the package's own collectives, so that no core is lost to spinning.
"""

from itertools import pairwise

import numpy as np
import torch
from mpi4py import MPI

from fedmpi.bench.cases import Values
from fedmpi.bench.field import Field
from fedmpi.comm import SERVER
from fedmpi.comm.segments import segments

CODING = "raw"
SEGMENT_BYTES = 1_000_000
"""Where none are demanded."""
Range = tuple[int, int]


class Streamed:
    """Whole vectors in ``parts`` ranges; the server adds one range of all clients while the next one arrives.

    With one range a client's whole vector is added while the next client's arrives.
    """

    coding, density = CODING, 1.0

    def __init__(self, field: Field, plan: str, *, whole: bool) -> None:
        self._field, self.plan, self.theta = field, plan, field.theta
        self._patience = field.patience.lively(field.ranks.size, hub=field.ranks.is_server)
        size = field.layout.size
        self._ranges = ((0, size),) if whole else segments(size, field.segment_bytes or SEGMENT_BYTES)
        step = self._ranges[0][1]
        self._clients = [(c, host) for c, host in enumerate(field.ranks.hosts)]
        self._jobs = [(r, c, host) for r in self._ranges for c, host in self._clients]
        self._local = np.empty(0 if field.ranks.is_server else size, np.float32)
        ahead = 2 if whole else 2 * len(self._clients)
        self._buffers = [np.empty(step if field.ranks.is_server else 0, np.float32) for _ in range(ahead)]

    def down(self) -> None:
        """*Collective*. The server sends its vector to every client, range by range."""
        comm, patience = self._field.ranks.comm, self._patience
        if not self._field.ranks.is_server:
            received = [comm.Irecv(self._local[lo:hi], SERVER) for lo, hi in self._ranges]
            patience.wait_all(received, "the dense model")
            return
        before: list[MPI.Request] = []
        for lo, hi in self._ranges:
            now = [comm.Isend(self._field.theta[lo:hi], host) for _, host in self._clients]
            patience.wait_all(before, "clients to take the dense model")
            before = now
        patience.wait_all(before, "clients to take the dense model")

    def up(self) -> None:
        """*Collective*. Clients send; the server adds in client order."""
        if not self._field.ranks.is_server:
            comm, theta = self._field.ranks.comm, self._field.theta
            sends = [comm.Isend(theta[lo:hi], SERVER) for lo, hi in self._ranges]
            self._patience.wait_all(sends, "the server to take the dense update")
            return
        ahead = len(self._buffers)
        requests = [self._post(place) for place in range(min(ahead, len(self._jobs)))]
        for place, ((lo, hi), client, _) in enumerate(self._jobs):
            self._patience.wait(requests[place], f"client {client}")
            self._add(self._field.theta[lo:hi], self._buffers[place % ahead][: hi - lo], client)
            if client == self._clients[-1][0]:
                self._finish(self._field.theta[lo:hi])
            if place + ahead < len(self._jobs):
                requests.append(self._post(place + ahead))

    def _finish(self, target: Values) -> None:
        """Divide by the weights' sum, as any weighted mean has to that cannot know it to be 1."""
        torch.from_numpy(target).div_(float(self._field.weights.sum()))

    def _post(self, place: int) -> MPI.Request:
        (lo, hi), _, host = self._jobs[place]
        return self._field.ranks.comm.Irecv(self._buffers[place % len(self._buffers)][: hi - lo], host)

    def _add(self, target: Values, part: Values, client: int) -> None:
        total, weight = torch.from_numpy(target), float(self._field.weights[client])
        if client == 0:
            torch.mul(torch.from_numpy(part), weight, out=total)
        else:
            total.add_(torch.from_numpy(part), alpha=weight)

    def moved(self) -> tuple[int, int]:
        """Return the bytes down and up."""
        both = 4 * self._field.layout.size * len(self._clients)
        return both, both


class Collective:
    """MPI's own: broadcast down, every client scales its vector, reduce up."""

    plan, coding, density = "MPI Bcast, Reduce", CODING, 1.0

    def __init__(self, field: Field) -> None:
        self._field, self.theta = field, field.theta
        self._local = np.empty(field.layout.size, np.float32)

    def down(self) -> None:
        """*Collective*. Broadcast."""
        buffer = self._field.theta if self._field.ranks.is_server else self._local
        self._field.patience.wait(self._field.ranks.comm.Ibcast(buffer, SERVER), "the broadcast")

    def up(self) -> None:
        """*Collective*. Scale and reduce; the server adds nothing of its own."""
        field, comm = self._field, self._field.ranks.comm
        if field.ranks.is_server:
            self._local.fill(0)
            request = comm.Ireduce(self._local, field.theta, MPI.SUM, SERVER)
        else:
            np.multiply(field.theta, field.weights[field.ranks.hosted[0]], out=self._local)
            request = comm.Ireduce(self._local, None, MPI.SUM, SERVER)
        field.patience.wait(request, "the reduction")

    def moved(self) -> tuple[int, int]:
        """Return what every client receives and gives; how often MPI forwards it is its own business."""
        both = 4 * self._field.layout.size * len(self._field.ranks.hosts)
        return both, both


class Pickled:
    """Lower-case calls of mpi4py on dictionaries of torch tensors, as most research code does it."""

    plan, coding, density = "pickled tensors", CODING, 1.0

    def __init__(self, field: Field) -> None:
        self._field, self.theta = field, field.theta
        places = pairwise(field.layout.offsets)
        flat = torch.from_numpy(field.theta)  # a view would be pickled with all of the vector
        self._tensors = {name: flat[lo:hi].clone() for name, (lo, hi) in zip(field.layout.names, places, strict=True)}

    def down(self) -> None:
        """*Collective*. Broadcast a dictionary."""
        field = self._field
        field.ranks.comm.bcast(self._tensors if field.ranks.is_server else None, SERVER)

    def up(self) -> None:
        """*Collective*. Gather dictionaries, add tensor by tensor."""
        field = self._field
        gathered = field.ranks.comm.gather(None if field.ranks.is_server else self._tensors, SERVER)
        for client, tensors in enumerate((gathered or [])[1:]):
            for name, target in self._tensors.items():
                target.mul_(bool(client)).add_(tensors[name], alpha=float(field.weights[client]))

    def moved(self) -> tuple[int, int]:
        """Return the bytes of the values; pickle adds some."""
        both = 4 * self._field.layout.size * len(self._field.ranks.hosts)
        return both, both
