"""Does a sparse round save as much time as bytes? Over links shaped by `tc`, beside the same round sent dense.

    python tests/benchmarks/shaped_link.py [MBIT] [REPEATS]

Three ranks in network namespaces (needs root and MPICH), every port limited to MBIT. Dense models, pruned ones (70 % of
the weights go in round 0) with raw values, and the same coded without loss, one after the other, REPEATS times; medians
of the seconds of downlink and uplink of all rounds, and of their bytes, as ratios to dense.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "analysis")]

import predict  # noqa: E402 - the paths come first

from fedmpi.record import open_run  # noqa: E402
from tests import network  # noqa: E402

COMMON = ("data.clients=[prid, ilids]", "federation.rounds=4", "local.epochs=1", "local.last_round_epochs=1",
          "crr.enabled=false", "evaluation.every=100", "data.synthetic.images=0.5")  # fmt: skip
PRUNED = ("pruning.step=0.7", "pruning.target=0.7")
VARIANTS = {
    "dense": ("pruning.enabled=false", "wire.values=raw"),
    "raw": (*PRUNED, "wire.values=raw"),
    "lossless": (*PRUNED, "wire.values=lossless"),
}


def measure(variant: str, mbit: int, folder: Path) -> tuple[float, float]:
    """Return bytes and seconds of all downlinks and uplinks of a run."""
    words = [word for setting in (*COMMON, *VARIANTS[variant]) for word in ("--set", setting)]
    with network.shaped(3, dict.fromkeys(("server", "down", "up"), mbit), folder) as made:
        made.run(["train", *words, "--out", str(folder / "run")])
    with open_run(folder / "run") as run:
        moved = [predict.transfers(run)[way] for way in ("down", "up")]
    return sum(count for count, _ in moved), sum(float(taken.sum()) for _, taken in moved)


def main() -> None:
    """Measure and print."""
    mbit, repeats = (int(word) for word in (*sys.argv[1:], *("1000", "3")[len(sys.argv) - 1 :]))
    if reason := network.why_not():
        sys.exit(reason)
    got: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(repeats):
        for name in VARIANTS:
            with tempfile.TemporaryDirectory() as folder:
                got[name].append(measure(name, mbit, Path(folder)))
    medians = {name: np.median(pairs, axis=0) for name, pairs in got.items()}
    print(f"{mbit} Mbit/s, {repeats} runs each")
    for name, (count, seconds) in medians.items():
        by_bytes, by_time = np.array([count, seconds]) / medians["dense"]
        print(f"{name:9} {count / 1e6:7.1f} MB {seconds:6.2f} s   bytes {by_bytes:.3f}  time {by_time:.3f}  "
              f"time / bytes {by_time / by_bytes:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
