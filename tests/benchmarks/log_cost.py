"""What logging costs: seconds per committed round, file size, and the time to open and summarise the file.

    python tests/benchmarks/log_cost.py 8 20       # clients, rounds
    python tests/benchmarks/log_cost.py 100 1000

Every variable of the schema is given, the 62 layers of a ResNet-18, and for each client a model, an update, a request,
and every tenth round an evaluation. Wall and CPU time; the first quarter of the rounds apart from the last one, since
the cost must not grow with the file.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fedmpi.cli_inspect import summary
from fedmpi.record import RunWriter, empty_messages, open_run, schema

LAYERS = [f"layer{n}.weight" for n in range(62)]
DENSE = 44_752_768


def messages(rng: np.random.Generator, t: int, clients: int) -> np.ndarray:
    """Return the messages of a round."""
    directions = ["down", "request", "up", *(["eval"] if t % 10 == 9 else [])]
    rows = empty_messages(clients * len(directions))
    rows["round"], rows["client"] = t, np.tile(np.arange(clients), len(directions))
    rows["direction"] = np.repeat(directions, clients)
    rows["header"] = 128
    model = rows["direction"] != b"request"
    rows["values"][model] = rng.integers(20e6, 44e6, model.sum())
    rows["bytes"] = rows["header"] + rows["values"]
    rows["dense_bytes"][model] = DENSE
    rows["mask_mode"], rows["coding"] = b"cached", b"raw"
    rows["seconds"], rows["start"] = rng.random(len(rows)), 10.0 * t + rng.random(len(rows))
    return rows


def values(rng: np.random.Generator, group: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return all variables of a group that messages do not sum to."""
    given = [v for v in schema.GROUPS[group] if v.name != "messages" and not v.name.startswith("bytes_")]
    return {v.name: rng.integers(0, 2, shape) if v.dtype.startswith("i") else rng.random(shape) for v in given}


def write(path: Path, clients: int, rounds: int) -> list[tuple[float, float]]:
    """Write a run; return wall and CPU seconds of every commit."""
    rng = np.random.default_rng(0)
    taken = []
    with RunWriter.create(path, [f"client{k}" for k in range(clients)], LAYERS, {"config": "x"}, rounds=rounds) as log:
        for t in range(rounds):
            given = (
                values(rng, "rounds", ()),
                values(rng, "clients", (clients,)),
                values(rng, "layers", (clients, len(LAYERS))) | {"bytes_values": rng.integers(0, 9e6, (clients, 62))},
                messages(rng, t, clients),
            )
            start = time.perf_counter(), time.process_time()
            log.commit(t, *given)
            taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        working = path.stat().st_size
        start = time.perf_counter(), time.process_time()
    print(f"file {working / 1e6:.1f} MB while running, {path.stat().st_size / 1e6:.1f} MB when closed; "
          f"closing {time.perf_counter() - start[0]:.2f} s, {time.process_time() - start[1]:.2f} CPU s")  # fmt: skip
    return taken


def main() -> None:
    """Measure and print."""
    clients, rounds = (int(word) for word in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        taken = 1e3 * np.array(write(path, clients, rounds))
        quarter = max(1, rounds // 4)
        for name, some in (("all", taken), ("first quarter", taken[:quarter]), ("last quarter", taken[-quarter:])):
            wall, cpu = some.T
            print(f"{name:14} ms a round: wall median {np.median(wall):.1f}, mean {wall.mean():.1f}, max "
                  f"{wall.max():.0f}; CPU mean {cpu.mean():.1f}")  # fmt: skip
        start = time.perf_counter(), time.process_time()
        with open_run(path) as run:
            summary(run)
            moved = int(run.messages["bytes"].sum())
        print(f"open, summarise, sum {moved / 1e9:.0f} GB of messages: {time.perf_counter() - start[0]:.2f} s, "
              f"{time.process_time() - start[1]:.2f} CPU s")  # fmt: skip


if __name__ == "__main__":
    main()
