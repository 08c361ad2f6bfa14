"""What a run file holds, as one declarative table: every group, dimension, variable, unit and default.

Writer, reader and docs/hdf5-schema.md all follow this file. Adding a variable with a default is a minor change of
:data:`SCHEMA_VERSION`; removing or renaming one, or changing its unit or meaning, is a major change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import numpy as np

SCHEMA_NAME: Final = "fedmpi-run"
SCHEMA_VERSION: Final = (1, 2)
"""(major, minor): a reader refuses a newer major and ignores what a newer minor adds."""

NO_COUNT: Final = -1
"""Marks an integer count that was not measured (``_FillValue`` of that variable)."""


class CrrDecision(IntEnum):
    """What cross-round recovery decided for a client in a round; the codes are part of the schema."""

    OFF = 0
    ACCEPTED = 1
    HALTED = 2
    RECOVERED = 3
    TARGET_REACHED = 4


@dataclass(frozen=True, slots=True)
class Variable:
    """One array of the run file.

    Parameters
    ----------
    name, dims
        Name inside its group, and the names of its dimensions, outermost first.
    dtype
        ``"f8"``, ``"f4"``, ``"i8"``, ``"i4"`` or ``"i1"`` (little endian on disk).
    unit
        ``"s"``, ``"byte"`` or ``"1"`` (a count, a share in [0, 1] or any other pure number).
    long_name
        What it is, in one line.
    default
        Stored where a round brings no value; None means that every round must bring one.
    flags
        Meaning of the integer codes, if it is a code.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    unit: str
    long_name: str
    default: float | None = None
    flags: Mapping[int, str] = field(default_factory=dict)

    @property
    def on_disk(self) -> np.dtype[np.generic]:
        """The little-endian NumPy dtype of the dataset."""
        return np.dtype("<" + self.dtype)

    @property
    def fill(self) -> float:
        """The value of cells that were never written: the default, 0 for required integers, NaN for required floats."""
        if self.default is not None:
            return self.default
        return float("nan") if self.dtype.startswith("f") else 0


_NAN: Final = float("nan")
_SECTIONS: Final = ("values", "mask", "header", "scalars", "buffers")
_SECTION_WORDS: Final = {
    "values": "surviving parameter values",
    "mask": "coded mask or mask change",
    "header": "fixed-size headers",
    "scalars": "scalars (weights, losses, ratios)",
    "buffers": "BatchNorm buffers",
}


def _floats(dims: tuple[str, ...], unit: str, names: Mapping[str, str]) -> list[Variable]:
    """Return optional float64 variables: NaN where not measured."""
    return [Variable(name, dims, "f8", unit, text, _NAN) for name, text in names.items()]


def _bytes(dims: tuple[str, ...], names: Mapping[str, str], default: int | None) -> list[Variable]:
    """Return variables of int64 bytes."""
    return [Variable(name, dims, "i8", "byte", text, default) for name, text in names.items()]


_R: Final = ("round",)
_RC: Final = ("round", "client")
_RCL: Final = ("round", "client", "layer")


def _rounds() -> list[Variable]:
    """Return the variables of ``/rounds``: one number per round."""
    required = [
        Variable("started", _R, "f8", "s", "start of the round, seconds since 1970-01-01T00:00:00Z"),
        Variable("seconds", _R, "f8", "s", "wall time of the round"),
    ]
    seconds = {
        "seconds_downlink": "wall time of the downlink collective, seen by the server",
        "seconds_local": "wall time of local work (training, pruning, encoding), seen by the server",
        "seconds_uplink": "wall time of the uplink collective, seen by the server",
        "seconds_encode": "time in which the server packed and coded what it sent, inside the downlink",
        "seconds_wait": "time in which the server waited for the clients' messages to begin, inside the uplink",
        "seconds_transfer": "time in which the server waited for bytes under way, in both directions",
        "seconds_decode": "time in which the server decoded and checked values, inside the uplink",
        "seconds_merge": "time in which the server merged updates, inside the uplink",
        "seconds_evaluate": "wall time of evaluation, seen by the server",
    }
    traffic = {
        "bytes_up": "bytes from all clients: updates and recovery requests",
        "bytes_down": "bytes to all clients: models and recovered values",
        "bytes_evaluation": "bytes that moved only to evaluate (the global model)",
        "bytes_control": "bytes of collective bookkeeping (results, flags), in no message of the table",
        "bytes_dense_up": "bytes that dense updates would have needed: parameters and buffers, no mask",
        "bytes_dense_down": "bytes that dense models would have needed: parameters and buffers, no mask",
    }
    scores = {
        "mean_density": "mean over clients of the share of prunable parameters kept after the round",
        "mean_loss": "mean over clients of loss_total",
        "mean_map": "mean over clients of the personalized models' mAP",
        "mean_rank1": "mean over clients of the personalized models' rank-1",
        "mean_rank5": "mean over clients of the personalized models' rank-5",
        "mean_rank10": "mean over clients of the personalized models' rank-10",
        "global_map": "mean over clients of the global model's mAP",
        "global_rank1": "mean over clients of the global model's rank-1",
    }
    uniform = Variable(
        "uniform_weights", _R, "i1", "1", "whether aggregation fell back to uniform weights", 0, {0: "no", 1: "yes"}
    )
    return [
        *required,
        *_floats(_R, "s", seconds),
        *_bytes(_R, {k: v for k, v in traffic.items() if k in {"bytes_up", "bytes_down"}}, None),
        *_bytes(_R, {k: v for k, v in traffic.items() if k not in {"bytes_up", "bytes_down"}}, 0),
        *_floats(_R, "1", scores),
        uniform,
        Variable("messages", _R, "i8", "1", "rows of /messages/table that belong to the round (set by the writer)", 0),
    ]


def _client_traffic() -> list[Variable]:
    """Return the bytes of every client and round, by direction and section."""
    up = {f"bytes_up_{s}": f"uplink bytes: {_SECTION_WORDS[s]}" for s in _SECTIONS}
    down = {f"bytes_down_{s}": f"downlink bytes: {_SECTION_WORDS[s]}" for s in _SECTIONS}
    dense = {
        "bytes_dense_up": "bytes that a dense update would have needed",
        "bytes_dense_down": "bytes that a dense model would have needed",
        "bytes_evaluation": "bytes that moved only to evaluate (the global model)",
    }
    return [*_bytes(_RC, up | down, None), *_bytes(_RC, dense, 0)]


def _client_training() -> list[Variable]:
    """Return times, losses and clustering of every client and round."""
    seconds = {
        "seconds_train": "time in forward, backward and optimizer steps",
        "seconds_cluster": "time in feature extraction and clustering",
        "seconds_probe": "time in CRR probes and the KLAW measurement",
        "seconds_prune": "time in choosing the mask",
        "seconds_encode": "time in coding the update",
        "seconds_transfer": "time from first to last byte of this client's messages, at the server, merging included",
        "seconds_evaluate": "time in evaluation",
    }
    losses = {
        "loss_total": "mean training loss of the round",
        "loss_intra": "mean intra-camera loss term, unweighted",
        "loss_inter": "mean inter-camera loss term, unweighted",
        "loss_kl": "mean KLL term (of other methods: their regulariser), unweighted",
    }
    counts = {
        "clusters": "clusters found in the last local epoch",
        "outliers": "training images that no cluster holds in the last local epoch",
        "batches": "batches trained on in the round",
        "idle_epochs": "local epochs whose clustering left nothing to train on",
        "train_images": "training images in use (the bad ones excluded)",
        "bad_images": "training images found unreadable so far",
    }
    return [
        *_floats(_RC, "s", seconds),
        *_floats(_RC, "1", losses),
        *(Variable(name, _RC, "i4", "1", text, NO_COUNT) for name, text in counts.items()),
    ]


def _client_method() -> list[Variable]:
    """Return aggregation weights, pruning and CRR of every client and round."""
    codes = {int(decision): decision.name.lower() for decision in CrrDecision}
    weights = {
        "kl_divergence": "v_k: KL divergence of the model after local training from the one before it (KLAW); "
        "the mean of 1 - cos where weights are by cosine distance",
        "klaw": "normalised KLAW weight, or whatever else the method weights by",
        "praw": "normalised PRAW weight",
    }
    norm = {"norm": "Euclidean norm of the values that the client sent"}
    probes = {
        "crr_before": "CRR probe of the locally trained model with the old mask",
        "crr_after": "CRR probe of the locally trained model with the candidate mask",
        "crr_received": "CRR probe of the received model (stage 2)",
    }
    return [
        *_floats(_RC, "1", weights | norm),
        Variable("weight", _RC, "f8", "1", "aggregation weight w_k, sum 1 over clients"),
        Variable("density", _RC, "f8", "1", "share of prunable parameters kept after the round"),
        Variable("crr_decision", _RC, "i1", "1", "decision of cross-round recovery", 0, codes),
        *_floats(_RC, "1", probes),
        Variable("skipped", _RC, "i1", "1", "whether the server refused the update", 0, {0: "no", 1: "yes"}),
        Variable("participated", _RC, "i1", "1", "whether the client took part in the round", 1, {0: "no", 1: "yes"}),
    ]


_SCORES: Final = {
    "map": "mAP of the personalized model on the client's own query and gallery",
    "rank1": "rank-1 of the personalized model",
    "rank5": "rank-5 of the personalized model",
    "rank10": "rank-10 of the personalized model",
    "global_map": "mAP of the global model on the client's own query and gallery",
    "global_rank1": "rank-1 of the global model",
}


def _client_scores() -> list[Variable]:
    """Return the retrieval scores of every client and round."""
    skipped = Variable("queries_skipped", _RC, "i4", "1", "queries without a true match in the gallery", NO_COUNT)
    return [*_floats(_RC, "1", _SCORES), skipped]


def _layers() -> list[Variable]:
    """Return what is kept per layer."""
    return [
        Variable("density", _RCL, "f4", "1", "share of the layer's parameters kept after the round", _NAN),
        Variable("bytes_values", _RCL, "i8", "byte", "bytes of the layer's surviving values as float32", 0),
    ]


def _baseline() -> list[Variable]:
    """Return the untrained model's scores, measured before round 0."""
    names = {"map": "mAP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10"}
    return _floats(("client",), "1", {k: f"{v} of the untrained model" for k, v in names.items()})


GROUPS: Final[Mapping[str, tuple[Variable, ...]]] = {
    "rounds": tuple(_rounds()),
    "clients": (*_client_traffic(), *_client_training(), *_client_method(), *_client_scores()),
    "layers": tuple(_layers()),
    "baseline": tuple(_baseline()),
}
"""Variables of every group, in file order."""

SIGNALS: Final[Mapping[str, str]] = {
    "rounds": "mean_map",
    "clients": "bytes_up_values",
    "layers": "density",
    "baseline": "map",
}
"""The variable that a viewer plots first (NeXus ``signal``)."""


def variables(group: str) -> dict[str, Variable]:
    """Return the variables of ``group`` by name; KeyError for an unknown group."""
    return {variable.name: variable for variable in GROUPS[group]}
