"""Run under mpirun -n 3 by test_agree.py: ranks fail in all ways, and rank 0 prints as JSON what every rank raised."""

import json
import os
import sys
import time

import numpy as np
from mpi4py import MPI

from fedmpi.comm import Patience, Ranks, agree
from fedmpi.errors import DataError, Stopped

CLIENTS = 4  # on three ranks: 0 and 2 on rank 1, 1 and 3 on rank 2
PATIENCE = Patience(deadline=20.0)
AGREE = sys.modules["fedmpi.comm.agree"]


def nothing(stage, rank):
    pass


def client_raises(stage, rank):
    if rank == 2:
        stage.enter(1)
        raise ValueError("boom")


def server_raises(stage, rank):
    if rank == 0:
        raise DataError("the disk is full")


def two_raise(stage, rank):
    if rank:
        stage.enter(rank - 1)
        raise KeyError(f"key {rank}")


def quiet_exit(stage, rank):
    if rank == 1:
        stage.enter(2)
        sys.exit(0)


def long_text(stage, rank):
    if rank == 1:
        raise ValueError("\N{SNOWMAN}" * 5000)


def one_stops(stage, rank):
    if rank == 2:
        stage.enter(1)
        raise Stopped("SIGUSR1")


def one_stops_one_fails(stage, rank):
    if rank == 1:
        raise Stopped("SIGUSR1")
    if rank == 2:
        raise ValueError("boom")


def one_is_busy(stage, rank):
    if rank == 1:
        stage.enter(0)
        raise ValueError("early")
    if rank == 2:
        time.sleep(4)


def one_stops_the_other_later(stage, rank):
    if rank:
        time.sleep(2.0 * (rank == 1))
        raise Stopped(f"SIGUSR1 on rank {rank}")


def one_is_late(stage, rank):
    if rank == 2:
        time.sleep(4)


def outcome(ranks: Ranks, body, patience: Patience) -> dict[str, object]:
    """Return what this rank raised in a stage, and after how many seconds."""
    start = time.monotonic()
    name, text, notes = "nothing", "", []
    try:
        with agree(ranks, "training", patience) as stage:
            body(stage, ranks.rank)
    except Exception as error:  # noqa: BLE001 - what it is, is the result
        name, text, notes = type(error).__name__, str(error), getattr(error, "__notes__", [])
    return {"type": name, "text": text, "notes": list(notes), "seconds": time.monotonic() - start}


def main() -> None:
    comm = MPI.COMM_WORLD
    results = {}
    ranks = Ranks.create(comm, CLIENTS)
    for body in (
        nothing,
        client_raises,
        server_raises,
        two_raise,
        quiet_exit,
        long_text,
        one_stops,
        one_stops_one_fails,
        nothing,
    ):
        results[body.__name__] = comm.gather(outcome(ranks, body, PATIENCE))
    # model messages that nobody reads any more must not get in the way of the story
    if comm.rank == 1:
        unread = ranks.comm.Isend(np.zeros(5), 0)
    results["after_unread_messages"] = comm.gather(outcome(ranks, client_raises, PATIENCE))
    AGREE.GRACE_SECONDS = 0.5
    results["one_stops_the_other_later"] = comm.gather(outcome(ranks, one_stops_the_other_later, PATIENCE))
    results["one_is_busy"] = comm.gather(outcome(Ranks.create(comm, CLIENTS), one_is_busy, Patience(deadline=6.0)))
    results["one_is_late"] = comm.gather(outcome(Ranks.create(comm, CLIENTS), one_is_late, Patience(deadline=1.0)))
    if comm.rank == 1:
        unread.Cancel()
    if comm.rank == 0:
        print(json.dumps(results), flush=True)
    comm.Barrier()
    os._exit(0)  # messages are still under way, which is the point; the job as such is over


if __name__ == "__main__":
    main()
