"""From what happened to what is recorded: results of a round as the variables of the run file and of summary.json.

The one place that knows both vocabularies; `fedmpi.federated` and `fedmpi.record` do not know each other.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm import Direction, Traffic
from fedmpi.federated.round import RoundResult
from fedmpi.record import MESSAGE_DTYPE, Run, empty_messages
from fedmpi.sparse import Layout, Mask, MaskMode, ValueCoding

DIRECTION_NAMES = {
    Direction.DOWN: b"down",
    Direction.UP: b"up",
    Direction.REQUEST: b"request",
    Direction.RECOVER: b"recover",
    Direction.EVALUATE: b"eval",
    Direction.MEANS: b"means",
}
CODING_NAMES = {
    ValueCoding.RAW_F32: b"raw",
    ValueCoding.LOSSLESS: b"lossless",
    ValueCoding.LOSSLESS_DELTA: b"delta",
    ValueCoding.BF16: b"bf16",
    ValueCoding.FP16: b"fp16",
}
METHOD_DIRECTIONS = (Direction.DOWN, Direction.UP, Direction.REQUEST, Direction.RECOVER, Direction.MEANS)
UP_DIRECTIONS = (Direction.UP, Direction.REQUEST, Direction.MEANS)
INTEGERS = (
    "crr_decision",
    "clusters",
    "outliers",
    "batches",
    "idle_epochs",
    "train_images",
    "bad_images",
    "queries_skipped",
)


def message_table(messages: Sequence[Traffic], started: float) -> NDArray[np.void]:
    """Return messages as rows of ``/messages/table``; ``started`` is the round's start, seconds since 1970."""
    table = empty_messages(len(messages))
    for row, message in zip(table, messages, strict=True):
        mode = MaskMode(message.mask_mode)
        row["round"], row["client"] = message.round, message.client
        row["direction"] = DIRECTION_NAMES[message.direction]
        for section in ("header", "mask", "values", "buffers", "scalars"):
            row[section] = getattr(message, section)
        row["bytes"], row["dense_bytes"] = message.total, message.dense
        row["mask_mode"] = b"none" if mode is MaskMode.ABSENT else mode.name.lower().encode()
        row["coding"] = CODING_NAMES[ValueCoding(message.coding)]
        row["seconds"], row["start"] = message.seconds, started + message.start
    return table.astype(MESSAGE_DTYPE, copy=False)


def round_variables(result: RoundResult) -> dict[str, float]:
    """Return the variables of ``/rounds`` that do not follow from those of the clients."""
    seconds = {f"seconds_{name}": value for name, value in result.seconds.items() if name != "round"}
    return {
        "started": result.started,
        "seconds": result.seconds["round"],
        **seconds,
        "bytes_control": result.control,
        "uniform_weights": int(result.selection.weights.uniform),
        "global_map": mean(result.clients["global_map"]),
        "global_rank1": mean(result.clients["global_rank1"]),
    }


def client_variables(result: RoundResult, known: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the variables of ``/clients`` that messages do not give; ``known`` names those that the file has."""
    values: dict[str, NDArray[Any]] = {
        name: np.nan_to_num(array, nan=0 if name == "crr_decision" else -1).astype(np.int64)
        if name in INTEGERS
        else array
        for name, array in result.clients.items()
        if name in known
    }
    clients = len(result.clients["density"])
    weights = result.selection.weights
    for name, share in (("klaw", weights.klaw), ("praw", weights.praw), ("weight", weights.weight)):
        values[name] = np.zeros(clients)
        values[name][result.selection.merged] = share
    values["seconds_transfer"] = np.zeros(clients)
    for message in result.messages:
        if message.direction in METHOD_DIRECTIONS:
            values["seconds_transfer"][message.client] += message.seconds
    values["participated"] = np.isin(np.arange(clients), result.participants).astype(np.int64)
    values["skipped"] = np.isin(np.arange(clients), list(result.selection.skipped)).astype(np.int64)
    return values


def layer_variables(layout: Layout, masks: Mapping[int, Mask], participants: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Return the variables of ``/layers``, ``[clients, layers]``: kept share and uplink bytes of every tensor."""
    kept = np.array([[masks[c].count(t.slice.start, t.slice.stop) for t in layout.tensors] for c in sorted(masks)])
    sizes = np.array([t.slice.stop - t.slice.start for t in layout.tensors])
    sent = np.isin(sorted(masks), participants)[:, None]
    return {"density": kept / sizes, "bytes_values": 4 * kept * sent}


def mean(values: NDArray[np.float64]) -> float:
    """Return the mean of what was measured; NaN when nothing was."""
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else math.nan


@dataclass
class Totals:
    """Running sums of a run, for the console and the summary: bytes of the method, and what dense models would cost."""

    up: int = 0
    down: int = 0
    dense: int = 0
    evaluation: int = 0
    client_bytes: dict[int, int] = field(default_factory=dict)
    client_dense: dict[int, int] = field(default_factory=dict)

    def add(self, messages: Sequence[Traffic]) -> "Totals":
        """Add the messages of one round, and return the totals of that round alone."""
        this = Totals()
        for m in messages:
            for totals in (self, this):
                totals.count(m)
        return this

    def count(self, m: Traffic) -> None:
        """Add one message."""
        if m.direction is Direction.EVALUATE:
            self.evaluation += m.total
            return
        if m.direction in UP_DIRECTIONS:
            self.up += m.total
        else:
            self.down += m.total
        self.dense += m.dense
        self.client_bytes[m.client] = self.client_bytes.get(m.client, 0) + m.total
        self.client_dense[m.client] = self.client_dense.get(m.client, 0) + m.dense

    @property
    def saved(self) -> float:
        """Share of the dense bytes that was not sent; 0 before anything was."""
        return 1 - (self.up + self.down) / self.dense if self.dense else 0.0


def totals(messages: NDArray[np.void]) -> Totals:
    """Return the running sums after the messages of a run file's table."""
    evaluated = messages["direction"] == DIRECTION_NAMES[Direction.EVALUATE]
    paid = messages[~evaluated]
    up = np.isin(paid["direction"], [DIRECTION_NAMES[d] for d in UP_DIRECTIONS])
    sums = Totals(
        up=int(paid["bytes"][up].sum()),
        down=int(paid["bytes"][~up].sum()),
        dense=int(paid["dense_bytes"].sum()),
        evaluation=int(messages["bytes"][evaluated].sum()),
    )
    for client in np.unique(paid["client"]).tolist():
        own = paid[paid["client"] == client]
        sums.client_bytes[client] = int(own["bytes"].sum())
        sums.client_dense[client] = int(own["dense_bytes"].sum())
    return sums


def last_scores(run: Run) -> dict[str, NDArray[np.float64]]:
    """Return what the summary takes from the last committed round of a run file, ``float64[clients]`` by name."""
    return {name: run[f"clients/{name}"][-1] for name in ("map", "rank1", "density", "global_map", "global_rank1")}


def sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def summary(
    names: Sequence[str],
    before: Mapping[str, NDArray[np.float64]],
    last: Mapping[str, NDArray[np.float64]],
    totals: Totals,
    extra: Mapping[str, object],
) -> dict[str, object]:
    """Return the content of summary.json; scores and shares in [0, 1], bytes and seconds as integers and floats.

    ``before`` and ``last`` hold the scores of the untrained and the final personalized models, ``float64[clients]``.
    """
    clients = {
        name: {
            "map_before": before["map"][c],
            "map_after": last["map"][c],
            "rank1_before": before["rank1"][c],
            "rank1_after": last["rank1"][c],
            "density": last["density"][c],
            "bytes": totals.client_bytes.get(c, 0),
            "bytes_dense": totals.client_dense.get(c, 0),
            "saved": 1 - totals.client_bytes[c] / totals.client_dense[c] if totals.client_dense.get(c) else 0.0,
        }
        for c, name in enumerate(names)
    }
    figures = {
        "map_before": mean(before["map"]),
        "map_after": mean(last["map"]),
        "rank1_before": mean(before["rank1"]),
        "rank1_after": mean(last["rank1"]),
        "global_map_after": mean(last["global_map"]),
        "global_rank1_after": mean(last["global_rank1"]),
        "density": mean(last["density"]),
        "bytes_up": totals.up,
        "bytes_down": totals.down,
        "bytes_evaluation": totals.evaluation,
        "bytes_dense": totals.dense,
        "saved": totals.saved,
    }
    return {key: _plain(value) for key, value in {**figures, **extra, "clients": clients}.items()}


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Return ``value`` with NumPy scalars as Python ones and NaN as None, which JSON knows as null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (float, np.floating)):
        return None if math.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value
