"""``fedmpi`` with the tiny network and, on some ranks, an accident: ``driver.py [ACCIDENT[:RANK]...] -- train ...``.

The job is the real one, through the real command line. Accidents happen in round 1 of two or more.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from mpi4py import MPI

from fedmpi import cli, farewell, train
from fedmpi.comm import Patience, Ranks, Reduce, device_memory, waiting
from fedmpi.comm.staging import Staging
from fedmpi.federated import learner, spill
from fedmpi.federated import round as rounds
from fedmpi.federated.client import Client
from fedmpi.federated.learner import Learner
from fedmpi.federated.probe import Probe
from fedmpi.record import RunWriter
from fedmpi.reid import training
from fedmpi.stopping import Stopper
from tests.tiny import tiny_model

RANK = MPI.COMM_WORLD.rank
OUT = Path(os.environ.get("DRIVER_OUT", "."))
BAD_ROUND = 1


def before_training(action: Callable[[Client, int], None]) -> None:
    """Do something before every local training of this rank."""
    original = Client.train

    def train(client, state, received, round, log, room=None):
        action(client, round)
        return original(client, state, received, round, log, room)

    Client.train = train


def in_bad_round(action: Callable[[], object]) -> None:
    before_training(lambda _, number: action() if number == BAD_ROUND else None)


def bug() -> None:
    def fail():
        raise ZeroDivisionError("the injected bug")

    in_bad_round(fail)


def bug_in_the_last_round() -> None:
    def fail(client, number):
        if number == client.config.federation.rounds - 1:
            raise ZeroDivisionError("the injected bug")

    before_training(fail)


def quiet_exit() -> None:
    in_bad_round(lambda: sys.exit(0))


def fall_asleep() -> None:
    (OUT / f"asleep-{RANK}").touch()
    time.sleep(600)


def sleep() -> None:
    in_bad_round(fall_asleep)


def time_flies() -> None:
    """Let the clock of waiting jump past every deadline, once this rank waits for one that is asleep.

    No machine is then too slow for the deadline, and no test has to wait for it.
    """
    ahead, until = [0.0], Patience.until
    waiting.time = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0], sleep=time.sleep)

    def hurried(patience, done, what):
        def heard(awaited):
            if any(awaited.endswith(f"on rank {path.name.split('-')[1]}") for path in OUT.glob("asleep-*")):
                ahead[0] = 1e6
            patience.notice(awaited)

        until(replace(patience, notice=heard), done, what)

    Patience.until = hurried


def bug_outside() -> None:
    """Fail where no other rank is asked whether all is well."""
    original = rounds._aggregate

    def aggregate(world, state, updates, round, clock):
        if round == BAD_ROUND:
            raise ZeroDivisionError("the injected bug")
        return original(world, state, updates, round, clock)

    rounds._aggregate = aggregate


def quiet_exit_outside() -> None:
    original = rounds._aggregate

    def aggregate(world, state, updates, round, clock):
        return sys.exit(0) if round == BAD_ROUND else original(world, state, updates, round, clock)

    rounds._aggregate = aggregate


def spoil_head(**fields: int) -> Callable[[], None]:
    """Make the head of an update say something else."""

    def accident() -> None:
        original = rounds._update_head

        def head(world, round, client, history, update):
            right = original(world, round, client, history, update)
            if round != BAD_ROUND:
                return right
            return replace(right, **{name: getattr(right, name) + by for name, by in fields.items()})

        rounds._update_head = head

    return accident


def damaged_values() -> None:
    """Flip one bit of the values on their way up."""
    original = Reduce.merge
    calls = []

    def merge(reduce, values, *others, **options):
        calls.append(0)
        if len(calls) > BAD_ROUND:
            values = {c: v.copy() for c, v in values.items()}
            next(iter(values.values())).view(np.uint32)[7] ^= 1 << 13
        original(reduce, values, *others, **options)

    Reduce.merge = merge


def huge_update() -> None:
    original = Client.train

    def train(client, state, received, round, log, room=None):
        after, update = original(client, state, received, round, log, room)
        return after, replace(update, norm=np.nan if round == BAD_ROUND else update.norm)

    Client.train = train


def slow() -> None:
    """Leave a test time to look, and say which process this is."""
    (OUT / f"pid-{RANK}").write_text(str(os.getpid()))
    before_training(lambda *_: time.sleep(0.3))


def waiting_for_a_signal() -> Callable[[], None]:
    """Return a function that waits for a signal while the file `hold` lies there, and says so in `held-RANK`."""
    told = []
    note = Stopper._note

    def noted(stopper, number, frame):
        told.append(number)
        note(stopper, number, frame)

    def wait():
        (OUT / f"held-{RANK}").touch()
        while (OUT / "hold").exists() and not told:
            time.sleep(0.02)

    Stopper._note = noted
    return wait


def hold() -> None:
    """Wait in the bad round for a signal; a test that takes the file `hold` away lets all go on.

    A test that waits for `held-RANK` knows that its signal comes in the middle of a round, on any machine.
    """
    in_bad_round(waiting_for_a_signal())


def hold_in_a_batch() -> None:
    """The same within the first training batch of the bad round; the batches after it never end."""
    wait, steps, step = waiting_for_a_signal(), [], training.Stepper.step

    def slow(stepper, loss):
        step(stepper, loss)
        steps.append(0)
        wait() if len(steps) == 1 else fall_asleep()

    def begin():
        training.Stepper.step = slow

    in_bad_round(begin)


def spill_all() -> None:
    """Let the tiny network's masks and models count as large enough for files."""
    spill.SMALL = 1


def pretend_gpu(*, direct: bool) -> Callable[[], None]:
    """Let models move as if the CPU were a GPU; ``direct``: and as if MPI took its memory."""

    def accident() -> None:
        init, fresh = Learner.__init__, []

        def staged(self, config, device, interrupt):
            init(self, config, device, interrupt)
            self.staging = Staging(device, self.layout.size)

        def arrival(ranks, device, *, wanted):
            assert wanted
            return lambda size: fresh.append(size) or device_memory.vector(device, size)

        def counted(self):
            assert bool(fresh) == (direct and bool(RANK)), "where models arrived"
            free(self)

        Learner.__init__, free = staged, Learner.free
        Learner.free = counted
        if direct:
            train.plan_arrival = arrival

    return accident


def two_nodes() -> None:
    """Let all ranks but the server be on another node."""
    train.find_nodes = lambda ranks: (0,) + (1,) * (ranks.size - 1)


def slow_close() -> None:
    """Take longer to close the run file than a rank waits for others after a failure."""
    original = RunWriter.close

    def close(writer, *args, **options):
        time.sleep(2 * max(farewell.FAREWELL_SECONDS))
        original(writer, *args, **options)

    RunWriter.close = close


def script_probe() -> None:
    """Let client 0 prune twice and then recover."""
    answers = [0.5, 0.6, 0.6, 0.5, 0.6, 0.6, 0.3, 0.3, 0.6, 0.6]
    held = Probe.__init__

    def init(probe, data, config, temperature, viewing, seed, client):
        held(probe, data, config, temperature, viewing, seed, client)
        probe.client = client

    Probe.__init__ = init
    Probe.measure = lambda probe, *_: answers.pop(0) if probe.client == 0 else 0.5


class Counting(MPI.Intracomm):
    """Counts the bytes that are handed to MPI, and lets no other way of sending pass."""

    sent = 0

    def Isend(self, buf, dest, tag=0):
        array = buf[0] if isinstance(buf, list) else buf
        Counting.sent += memoryview(array).nbytes
        return super().Isend(buf, dest, tag)

    def _refuse(self, *args, **options):
        raise AssertionError("sent past the counter")

    Send = Ssend = Bsend = Rsend = Issend = Ibsend = Irsend = send = isend = Sendrecv = Send_init = _refuse
    Bcast = Ibcast = Gather = Igather = Gatherv = Scatterv = Reduce = Allreduce = Alltoallv = Put = _refuse


def count_bytes() -> None:
    """Write the bytes that this rank handed to the model communicator into a file at the end."""
    create = Ranks.create.__func__

    def counted(cls, comm, clients):
        ranks = create(cls, comm, clients)
        return replace(ranks, comm=Counting(ranks.comm))

    Ranks.create = classmethod(counted)
    free = Ranks.free

    def report(ranks):
        (OUT / f"sent-{RANK}.json").write_text(json.dumps(Counting.sent))
        free(ranks)

    Ranks.free = report


def count_statuses() -> None:
    """Write how often this rank told the others, in 8 bytes, whether all is well, and the bytes of what it saved."""
    module, blobs = sys.modules["fedmpi.comm.agree"], sys.modules["fedmpi.comm.blobs"]
    original, send, free, calls, saved = module._exchange, blobs._send, Ranks.free, [], []

    def exchange(*args):
        calls.append(args)
        return original(*args)

    def save(ranks, dest, client, blob, patience):
        saved.append(len(blob))
        send(ranks, dest, client, blob, patience)

    def report(ranks):
        (OUT / f"statuses-{RANK}.json").write_text(json.dumps([len(calls), sum(saved)]))
        free(ranks)

    module._exchange, blobs._send, Ranks.free = exchange, save, report


ACCIDENTS: dict[str, Callable[[], None]] = {
    "bug": bug,
    "bug-in-the-last-round": bug_in_the_last_round,
    "quiet-exit": quiet_exit,
    "sleep": sleep,
    "time-flies": time_flies,
    "bug-outside": bug_outside,
    "quiet-exit-outside": quiet_exit_outside,
    "wrong-round": spoil_head(round=1),
    "wrong-epoch": spoil_head(base_epoch=1, epoch=1),
    "damaged-values": damaged_values,
    "nan-norm": huge_update,
    "slow": slow,
    "hold": hold,
    "hold-in-a-batch": hold_in_a_batch,
    "slow-close": slow_close,
    "two-nodes": two_nodes,
    "staged": pretend_gpu(direct=False),
    "direct": pretend_gpu(direct=True),
    "spill-all": spill_all,
    "script-probe": script_probe,
    "count-bytes": count_bytes,
    "count-statuses": count_statuses,
}


def main() -> None:
    split = sys.argv.index("--")
    for accident in sys.argv[1:split]:
        name, _, rank = accident.partition(":")
        if not rank or int(rank) == RANK:
            ACCIDENTS[name]()
    learner.initial_model = tiny_model
    sys.argv[1:] = sys.argv[split + 1 :]
    cli.main()


if __name__ == "__main__":
    main()
