"""The table of messages: its columns, its checks, and the traffic sums that follow from it."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from fedmpi.errors import SchemaError

SECTIONS: Final = ("values", "mask", "header", "scalars", "buffers")
"""The parts of a message; their bytes sum to the bytes of the message."""

DIRECTIONS: Final[Mapping[str, str]] = {
    "up": "update, client to server",
    "down": "model, server to client",
    "eval": "global model, server to client, only to be evaluated",
    "means": "what a rank has merged, to the server (comm.uplink sharded, hierarchical), under its first client",
    "recover": "recovered values, server to client (CRR stage 2)",
    "request": "recovery request, client to server (CRR stage 2)",
}

MASK_MODES: Final[Mapping[str, str]] = {
    "none": "no mask: dense, or one that the receiver has",
    "cached": "mask unchanged, only its epoch and hash travel",
    "bitmap": "one bit per parameter",
    "table": "coded per tensor",
    "subset": "which survivors died",
    "xor": "which entries changed, in either direction",
}

CODINGS: Final[Mapping[str, str]] = {
    "raw": "float32",
    "lossless": "bit-exact, by themselves",
    "delta": "bit-exact, against values that both ends hold",
    "bf16": "rounded to bfloat16",
    "fp16": "rounded to IEEE half precision",
}

MESSAGE_COLUMNS: Final[Mapping[str, tuple[str, str, str]]] = {
    "round": ("<i4", "1", "round"),
    "client": ("<i4", "1", "index into the client names"),
    "direction": ("S8", "1", "one of: " + ", ".join(DIRECTIONS)),
    "header": ("<i8", "byte", "bytes of headers"),
    "mask": ("<i8", "byte", "bytes of the mask section"),
    "values": ("<i8", "byte", "bytes of values"),
    "buffers": ("<i8", "byte", "bytes of BatchNorm buffers"),
    "scalars": ("<i8", "byte", "bytes of scalars"),
    "bytes": ("<i8", "byte", "bytes of the message: the sum of its five sections"),
    "dense_bytes": ("<i8", "byte", "bytes that the dense equivalent needs"),
    "mask_mode": ("S8", "1", "one of: " + ", ".join(MASK_MODES)),
    "seconds": ("<f8", "s", "transfer time, NaN if not measured"),
    "start": ("<f8", "s", "start of the transfer, seconds since 1970-01-01T00:00:00Z, NaN if not measured"),
    "coding": ("S8", "1", "how the values travelled, one of: " + ", ".join(CODINGS)),
}
"""Columns of ``/messages/table``: dtype, unit, meaning."""

MESSAGE_DTYPE: Final = np.dtype([(name, kind) for name, (kind, _, _) in MESSAGE_COLUMNS.items()])
"""One row per message; plain columns only, so that PyTables and ``pandas.read_hdf`` can read it."""


def empty_messages(rows: int) -> npt.NDArray[np.void]:
    """Return ``rows`` zeroed message rows, to be filled in: seconds and start NaN, mask mode none, coding raw."""
    table = np.zeros(rows, MESSAGE_DTYPE)
    table["seconds"] = table["start"] = np.nan
    table["mask_mode"], table["coding"] = b"none", b"raw"
    return table


def check_messages(messages: npt.NDArray[np.void], round: int, clients: int) -> None:
    """Refuse rows that contradict themselves, the round or the number of clients; SchemaError names the first one."""
    if messages.dtype != MESSAGE_DTYPE or messages.ndim != 1:
        raise SchemaError(f"messages must be one array of MESSAGE_DTYPE, not {messages.dtype} {messages.shape}")
    sections = np.stack([messages[name] for name in SECTIONS])
    wrong = {
        f"is not of round {round}": messages["round"] != round,
        f"has no client in 0..{clients - 1}": (messages["client"] < 0) | (messages["client"] >= clients),
        f"has a direction other than {', '.join(DIRECTIONS)}": ~np.isin(messages["direction"], _codes(DIRECTIONS)),
        f"has a mask mode other than {', '.join(MASK_MODES)}": ~np.isin(messages["mask_mode"], _codes(MASK_MODES)),
        f"has a coding other than {', '.join(CODINGS)}": ~np.isin(messages["coding"], _codes(CODINGS)),
        "has a negative section": (sections < 0).any(axis=0),
        "has bytes that are not the sum of its sections": messages["bytes"] != sections.sum(axis=0),
    }
    for what, rows in wrong.items():
        if rows.any():
            row = int(np.argmax(rows))
            raise SchemaError(f"message {row} of round {round} {what}: {messages[row]}")


def _codes(names: Mapping[str, str]) -> npt.NDArray[np.bytes_]:
    return np.array([name.encode() for name in names])


def traffic(messages: npt.NDArray[np.void], clients: int) -> dict[str, npt.NDArray[np.int64]]:
    """Sum one round's messages into the byte variables of ``/clients``, int64[clients] each.

    Recovery requests and means count as uplink and recovered values as downlink, since the method needs them; what
    moves only to be evaluated is counted apart. The dense equivalent is that of ``up`` and ``down`` messages alone.
    """
    sides = {"up": (b"up", b"request", b"means"), "down": (b"down", b"recover")}
    sums: dict[str, npt.NDArray[np.int64]] = {}
    for side, names in sides.items():
        rows = messages[np.isin(messages["direction"], names)]
        sums |= {f"bytes_{side}_{section}": _per_client(rows, section, clients) for section in SECTIONS}
        plain = messages[messages["direction"] == side.encode()]
        sums[f"bytes_dense_{side}"] = _per_client(plain, "dense_bytes", clients)
    evaluation = messages[messages["direction"] == b"eval"]
    return sums | {"bytes_evaluation": _per_client(evaluation, "bytes", clients)}


def _per_client(rows: npt.NDArray[np.void], column: str, clients: int) -> npt.NDArray[np.int64]:
    """Sum a column by client, exactly (integers throughout)."""
    sums = np.zeros(clients, np.int64)
    np.add.at(sums, rows["client"], rows[column])
    return sums


def round_traffic(per_client: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, int]:
    """Sum what :func:`traffic` returns over clients into the byte variables of ``/rounds`` (without bytes_control)."""
    totals = {name: int(values.sum()) for name, values in per_client.items()}
    sides = {f"bytes_{side}": sum(totals[f"bytes_{side}_{name}"] for name in SECTIONS) for side in ("up", "down")}
    return sides | {name: totals[name] for name in ("bytes_dense_up", "bytes_dense_down", "bytes_evaluation")}
