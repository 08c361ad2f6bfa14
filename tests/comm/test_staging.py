"""What crosses to and from a GPU: the same models, only the kept values, and waits where they belong.

Without a GPU the same class moves vectors on the CPU, and a stand-in for CUDA's streams writes down who waits for whom.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fedmpi.comm.staging import Staging
from fedmpi.sparse import Mask

CPU = torch.device("cpu")
SIZE = 1003


def vector(mask, seed=0):
    values = np.random.default_rng(seed).standard_normal(mask.size).astype(np.float32)
    return np.where(mask.to_bool(), values, np.float32(0))


@pytest.fixture(params=[0.0, 0.3, 1.0])
def mask(request):
    return Mask.from_bool(np.random.default_rng(1).random(SIZE) < request.param)


def devices():
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees no CUDA device here")
    return [pytest.param(CPU, id="cpu"), pytest.param(torch.device("cuda", 0), id="cuda", marks=missing)]


@pytest.mark.parametrize("device", devices())
def test_vectors_go_there_and_come_back(device, mask):
    staging, other = Staging(device, SIZE), Mask.from_bool(np.arange(SIZE) % 3 == 0)
    for seed, kept in enumerate([mask, other, mask]):
        theta = vector(kept, seed)
        there = staging.up(theta, kept)
        assert there.device == device
        assert there.cpu().numpy().tobytes() == theta.tobytes()
        staging.start(there, kept)
        assert staging.finish().tobytes() == theta.tobytes()
    staging.free()


def test_what_was_sent_up_stays_when_the_buffer_is_used_again(mask):
    staging = Staging(CPU, SIZE)
    first = staging.up(vector(mask, 0), mask)
    staging.up(vector(mask, 1), mask)
    assert first.numpy().tobytes() == vector(mask, 0).tobytes()


@pytest.fixture
def crossed(monkeypatch):
    """What goes to the device or comes from there, in bytes."""
    found = []
    copy_to, copy = torch.Tensor.to, torch.Tensor.copy_
    note = lambda tensor: found.append(tensor.numel() * tensor.itemsize)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: note(self) or copy_to(self, *a, **k))
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, o, **k: note(o) or copy(self, o, **k))
    return found


def test_only_kept_values_cross(mask, crossed):
    staging, theta = Staging(CPU, SIZE), vector(mask)
    there = staging.up(theta, mask)
    assert crossed[0] == 4 * mask.count()
    crossed.clear()
    staging.start(there, mask)
    assert crossed == [4 * mask.count()]  # positions were found before


@pytest.mark.parametrize("how", ["up", "start and finish", "arrived"])
def test_what_crossed_last_does_not_cross_again(crossed, mask, how):
    staging, theta = Staging(CPU, SIZE), vector(mask)
    if how == "up":
        staging.up(theta, mask)
    elif how == "arrived":
        theta = staging.arrived(torch.from_numpy(theta[mask.to_bool()]), mask)
    else:
        staging.start(torch.from_numpy(theta.copy()), mask)
        theta = staging.finish()
    assert theta.tobytes() == vector(mask).tobytes()
    crossed.clear()
    assert staging.up(theta, mask).numpy().tobytes() == theta.tobytes()
    assert staging.up(theta, Mask.full(SIZE)).numpy().tobytes() == theta.tobytes()
    assert crossed == []
    assert staging.up(theta.copy(), mask).numpy().tobytes() == theta.tobytes()  # equal, but who knows
    assert crossed


def test_a_vector_that_is_gone_is_not_mistaken_for_another(mask):
    staging = Staging(CPU, SIZE)
    for seed in range(20):  # NumPy likes to use the same memory again
        theta = vector(mask, seed)
        assert staging.up(theta, mask).numpy().tobytes() == theta.tobytes()
        del theta


def test_what_arrived_on_the_device_comes_to_the_host_once(crossed, mask):
    staging, values = Staging(CPU, SIZE), torch.from_numpy(vector(mask)[mask.to_bool()])
    staging.up(vector(mask, 1), mask)  # finds positions
    crossed.clear()
    staging.arrived(values, mask)
    assert crossed == [4 * mask.count()]


def test_one_model_at_a_time():
    full = Mask.full(SIZE)
    staging = Staging(CPU, SIZE)
    with pytest.raises(RuntimeError, match="nothing is on its way"):
        staging.finish()
    staging.start(torch.zeros(SIZE), full)
    for second in (lambda: staging.start(torch.zeros(SIZE), full), lambda: staging.up(vector(full), full)):
        with pytest.raises(RuntimeError, match="is on its way from the device"):
            second()
    assert not staging.finish().any()


class Recorder:
    """Stands for CUDA's streams and event: notes what happens on which of them, in order."""

    def __init__(self, monkeypatch):
        self.log, self.on = [], "main"
        copy_to, copy = torch.Tensor.to, torch.Tensor.copy_
        note = self.log.append
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.stream("main"))
        monkeypatch.setattr(torch.cuda, "stream", self.switched)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: note(f"keep for {stream.name}"))
        monkeypatch.setattr(
            torch.Tensor, "to", lambda s, *a, **k: (k and note(f"up on {self.on}"), copy_to(s, *a, **k))[1]
        )
        monkeypatch.setattr(
            torch.Tensor, "copy_", lambda s, o, **k: (k and note(f"down on {self.on}"), copy(s, o, **k))[1]
        )

    @contextmanager
    def switched(self, stream):
        before, self.on = self.on, stream.name
        yield
        self.on = before

    def stream(self, name):
        class Stream:
            def wait_stream(_, other):
                self.log.append(f"{name} waits for {other.name}")

        Stream.name = name
        return Stream()

    def event(self):
        class Event:
            def record(_):
                self.log.append(f"mark on {self.on}")

            def synchronize(_):
                self.log.append("host waits")

        return Event()


def test_transfers_run_aside_and_are_waited_for_where_values_are_used(monkeypatch):
    mask = Mask.from_bool(np.arange(SIZE) % 2 == 0)
    staging = Staging(CPU, SIZE)
    staging.up(vector(mask), mask)
    recorder = Recorder(monkeypatch)
    staging._stream, staging._moved = recorder.stream("side"), recorder.event()
    there = staging.up(vector(mask), mask)
    assert recorder.log == ["host waits", "up on side", "mark on side", "main waits for side", "keep for main"]
    recorder.log.clear()
    staging.start(there, mask)
    assert recorder.log == ["host waits", "side waits for main", "keep for side", "down on side", "mark on side"]
    recorder.log.clear()
    staging.finish()
    assert recorder.log == ["host waits"]
    staging.free()
    assert recorder.log == ["host waits", "host waits"]
