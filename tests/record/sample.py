"""Rounds made up from (round, client, layer) alone, so that any reader can tell what must be in a file."""

import numpy as np

from fedmpi.record import empty_messages, schema

CLIENTS = ("market", "duke", "msmt")
LAYERS = ("conv1.weight", "layer1.0.conv1.weight")
SECTIONS = ("values", "mask", "header", "scalars", "buffers")


def distinct(round: int, position: int) -> float:
    """A number that no other (round, position) has."""
    return round + position / 1000


def clients(round: int, count: int = len(CLIENTS)) -> dict[str, np.ndarray]:
    """Every variable of /clients that a caller can give without the messages."""
    given = {}
    for position, variable in enumerate(schema.GROUPS["clients"]):
        if variable.dtype == "f8":
            given[variable.name] = np.array([distinct(round, position) + 10 * k for k in range(count)])
        elif variable.dtype in {"i4", "i1"}:
            given[variable.name] = np.arange(count) % 2
    return given


def layers(round: int, count: int = len(CLIENTS), depth: int = len(LAYERS)) -> dict[str, np.ndarray]:
    grid = np.arange(count)[:, None] * 100 + np.arange(depth) + round
    return {"density": (grid / 1000).astype(np.float32), "bytes_values": grid * 4}


def scalars(round: int) -> dict[str, float]:
    return {"started": 1.7e9 + round, "seconds": 10.0 + round, "bytes_control": 100 + round}


def messages(round: int, count: int = len(CLIENTS)) -> np.ndarray:
    """One message down and one up per client; in odd rounds client 0 recovers, in round 2 everyone evaluates."""
    kinds = [(k, way) for way in ("down", "up") for k in range(count)]
    kinds += [(0, "request"), (0, "recover")] if round % 2 else []
    kinds += [(k, "eval") for k in range(count)] if round == 2 else []
    table = empty_messages(len(kinds))
    for row, (client, way) in enumerate(kinds):
        table[row]["round"], table[row]["client"], table[row]["direction"] = round, client, way.encode()
        for place, section in enumerate(SECTIONS):
            table[row][section] = 1000 * (row + 1) + 10 * round + place
        table[row]["bytes"] = sum(int(table[row][section]) for section in SECTIONS)
        table[row]["dense_bytes"] = 100_000 + row
        table[row]["mask_mode"] = b"subset" if way == "up" else b"none"
        table[row]["seconds"], table[row]["start"] = 0.5, 1.7e9 + round
    return table


def parts(round: int) -> tuple:
    """All arguments of ``commit``."""
    return round, scalars(round), clients(round), layers(round), messages(round)


def write(writer, rounds: int, start: int = 0) -> None:
    for number in range(start, rounds):
        writer.commit(*parts(number))
