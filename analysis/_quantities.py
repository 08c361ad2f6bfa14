"""From a run file to the numbers that tables and figures show: plain arrays, no drawing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedmpi.record import CrrDecision, Run

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SECTIONS: Final = ("values", "mask", "buffers", "scalars", "header")
"""Sections of a message, as figures stack them."""
WAYS: Final = {"up": "uplink", "down": "downlink"}
METRICS: Final = {
    "map": "mAP",
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
    "global_map": "mAP of the global model",
    "global_rank1": "rank-1 of the global model",
}
"""Scores that a run file holds for every client."""
PHASES: Final = {
    "seconds_downlink": "downlink",
    "seconds_local": "local work",
    "seconds_uplink": "uplink, merge",
    "seconds_evaluate": "evaluation",
}
"""Stages of a round at the server, which follow one another."""
CLIENT_SECONDS: Final = {
    "seconds_cluster": "clustering",
    "seconds_train": "training",
    "seconds_probe": "probes",
    "seconds_prune": "pruning",
    "seconds_encode": "encoding",
    "seconds_transfer": "transfer",
    "seconds_evaluate": "evaluation",
}
"""Parts of a client's round."""
DECISIONS: Final = {int(decision): decision.name.lower().replace("_", " ") for decision in CrrDecision}


def section_bytes(run: Run, way: str) -> dict[str, Counts]:
    """Return the bytes sent ``up`` or ``down``, int64[rounds, clients] by section."""
    return {name: run[f"clients/bytes_{way}_{name}"] for name in SECTIONS}


def sent(run: Run, way: str | None = None) -> Counts:
    """Return the bytes that the method sent, ``up``, ``down`` or (None) both, int64[rounds, clients]."""
    ways = [way] if way else list(WAYS)
    return _total([part for w in ways for part in section_bytes(run, w).values()])


def dense(run: Run, way: str | None = None) -> Counts:
    """Return what the same messages would have needed without pruning, int64[rounds, clients]."""
    ways = [way] if way else list(WAYS)
    return _total([run[f"clients/bytes_dense_{w}"] for w in ways])


def _total(parts: Sequence[Counts]) -> Counts:
    """Add arrays exactly."""
    return np.asarray(np.sum(parts, axis=0, dtype=np.int64))


def saved(run: Run) -> float:
    """Return the share of the dense bytes that was not sent; NaN when nothing was."""
    total = int(dense(run).sum())
    return 1 - int(sent(run).sum()) / total if total else float("nan")


def parameters(run: Run) -> int:
    """Return N, the number of parameters of the model; 0 when no model was sent.

    A model's dense equivalent is its 4 N bytes of float32 beside the header, buffers and scalars that it has anyway.
    """
    messages = run.messages
    models = messages[np.isin(messages["direction"], [b"down", b"up"])]
    if not models.size:
        return 0
    first = models[0]
    return int(first["dense_bytes"] - first["header"] - first["buffers"] - first["scalars"]) // 4


@dataclass(frozen=True)
class Definition:
    """One way to count the communication of a run: who counts so, how, and the bytes of all rounds and clients."""

    name: str
    formula: str
    bytes: float


def definitions(run: Run) -> list[Definition]:
    """Return the field's three ways to count (METHOD.md section 8) and fedmpi's own, for rounds 0 to the last.

    M = 4 N is the model as float32 parameters, T rounds, K clients, d the share of prunable parameters kept.
    """
    model, density = 4 * parameters(run), run["clients/density"]
    moved = np.isin(run.messages["direction"], [b"up", b"down"])
    plan = float(run.rounds * len(run.clients) * 2 * model)
    return [
        Definition("FedReID", "2 T M per client, whatever is pruned", plan),
        Definition("EasyFL", "4 bytes x N for each model sent, either way", float(moved.sum() * model)),
        Definition("LotteryFL", "2 T M x mean d, masks not counted", plan * float(density.mean())),
        Definition(
            "fedmpi, dense", "the same messages unpruned: parameters, buffers, headers", float(dense(run).sum())
        ),
        Definition("fedmpi", "all bytes handed to MPI for training, masks included", float(sent(run).sum())),
    ]


def scores(run: Run, metric: str) -> Floats:
    """Return a score of every round and client, float64[rounds, clients], NaN where it was not measured."""
    return np.asarray(run[f"clients/{metric}"], np.float64)


def untrained(run: Run, metric: str) -> Floats:
    """Return the untrained model's score, float64[clients]; before training, global and personalized are the same."""
    return np.asarray(run[f"baseline/{metric.removeprefix('global_')}"], np.float64)


def curve(run: Run, metric: str) -> tuple[npt.NDArray[np.int64], Counts, Floats]:
    """Return where a run stood at each evaluation, the untrained model first.

    Returns
    -------
    rounds, int64[n]
        Finished rounds: 0 is before training, t + 1 after round t.
    total, int64[n]
        Bytes sent by then, over all clients.
    values, float64[n, clients]
        The score; NaN for clients that were not measured.
    """
    values = np.vstack([untrained(run, metric)[None], scores(run, metric)])
    total = np.concatenate([[0], np.cumsum(sent(run).sum(axis=1))])
    known = ~np.isnan(values).all(axis=1)
    return np.arange(run.rounds + 1)[known], total[known], values[known]


def mean(values: npt.NDArray[Any]) -> float:
    """Return the mean of what was measured; NaN when nothing was."""
    measured = np.asarray(values, np.float64)
    measured = measured[~np.isnan(measured)]
    return float(measured.mean()) if measured.size else float("nan")


def row_means(values: npt.NDArray[Any]) -> Floats:
    """Return the mean of every row over the clients that were measured; NaN for rows without any."""
    return np.array([mean(row) for row in values])


def last_measured(values: Floats) -> Floats:
    """Return the last value of every column of ``values`` [rounds, clients] that is not NaN."""
    return np.array([next((v for v in column[::-1] if not np.isnan(v)), np.nan) for column in values.T])
