"""Links between clients and server: presets, how to describe one, and how long a collective takes over it.

The model
---------
Every client has a port with a bandwidth each way; all of them meet at the server's port, which takes (or gives) at most
its own bandwidth, each way at once. A collective moves the clients' bytes range by range in lockstep, as fedmpi's
segmented scatter and gather do, so the slower of two sides sets the pace::

    flow  = max( sum_k b_k / server bandwidth,  max_port b_port / client bandwidth )

At most two ranges are in flight, and MPI asks before it sends a large message (one round trip, 2 L), so over a long
line latency sets the pace::

    time  = 4 L + S max( flow / S,  (flow / S + 2 L) / 2 )            S ranges, latency L one way

where 4 L is the head (L), the first question and answer (2 L), and the way of the last byte (L). Messages too small to
be cut (recovery requests) take L + flow. Not modelled: packet loss, slow start, other users of the link, the processors
(the caller adds the server's merging time).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import click
import numpy as np
from _quantities import Counts, Floats

GOODPUT: Final = 0.94
"""What TCP/IP over Ethernet leaves of a nominal rate: 1448 of 1538 bytes on the wire per full frame."""


@dataclass(frozen=True)
class Link:
    """One kind of link; bandwidths in bit/s of payload, latency in seconds one way.

    ``down`` and ``up`` are a client's, ``server`` is shared by all clients, each way.
    """

    name: str
    down: float
    up: float
    latency: float
    server: float

    def __str__(self) -> str:
        """Return what it is in one line."""
        rates = " / ".join(rate(x) for x in (self.down, self.up))
        return f"{self.name}: {rates} down / up, server {rate(self.server)}, {1e3 * self.latency:g} ms one way"


PRESETS: Final = {
    link.name: link
    for link in (
        Link("infiniband", 194e9, 194e9, 1.5e-6, 194e9),  # about 97 % of HDR
        Link("100gbe", GOODPUT * 100e9, GOODPUT * 100e9, 10e-6, GOODPUT * 100e9),
        Link("10gbe", GOODPUT * 10e9, GOODPUT * 10e9, 30e-6, GOODPUT * 10e9),
        Link("1gbe", GOODPUT * 1e9, GOODPUT * 1e9, 100e-6, GOODPUT * 1e9),
        Link("wifi", 200e6, 200e6, 3e-3, GOODPUT * 1e9),
        Link("fibre", 300e6, 100e6, 8e-3, GOODPUT * 1e9),
        Link("dsl", 50e6, 10e6, 15e-3, GOODPUT * 1e9),
        Link("5g", 200e6, 20e6, 15e-3, GOODPUT * 1e9),
        Link("4g", 30e6, 10e6, 30e-3, GOODPUT * 1e9),
    )
}
"""Typical payload rates, chosen by us: give your own by NAME=DOWN/UP/LATENCY/SERVER."""

_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)bit(?:/s)?", re.IGNORECASE)
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", re.IGNORECASE)
_FACTORS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "us": 1e-6, "ms": 1e-3, "s": 1.0}


class LinkType(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.5
    """A preset's name, or ``NAME=DOWN/UP/LATENCY/SERVER`` such as ``lab=100Mbit/20Mbit/5ms/1Gbit``."""

    name = "link"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Link:  # noqa: ANN401
        """Return the link that ``value`` describes."""
        if isinstance(value, Link):
            return value
        name, sign, text = str(value).partition("=")
        if not sign:
            if name in PRESETS:
                return PRESETS[name]
            self.fail(f"no link {name!r}; there are {', '.join(PRESETS)}, or NAME=DOWN/UP/LATENCY/SERVER", param, ctx)
        parts = text.split("/")
        if len(parts) != 4 or not name:
            self.fail(f"{value!r} is not NAME=DOWN/UP/LATENCY/SERVER, as in lab=100Mbit/20Mbit/5ms/1Gbit", param, ctx)
        down, up, server = (self._number(_RATE, parts[i], param, ctx) for i in (0, 1, 3))
        latency = self._number(_TIME, parts[2], param, ctx)
        if min(down, up, server) <= 0:
            self.fail(f"{value!r}: a bandwidth must be more than 0", param, ctx)
        return Link(name, down, up, latency, server)

    def _number(
        self, pattern: re.Pattern[str], text: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = pattern.fullmatch(text.strip())
        if match is None:
            kind = "a bandwidth such as 20Mbit" if pattern is _RATE else "a latency such as 5ms"
            self.fail(f"{text!r} is not {kind}", param, ctx)
        return float(match[1]) * _FACTORS[match[2].lower()]


def rate(bits: float) -> str:
    """Return a bandwidth in words."""
    for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")):
        if bits >= factor:
            return f"{bits / factor:.3g} {unit}"
    return f"{bits:.3g} bit/s"


def seconds(link: Link, way: str, sent: Counts, segments: int, hosts: Sequence[int] | None = None) -> Floats:
    """Return how long a collective takes in every round, float64[rounds]; 0 where nothing moves.

    Parameters
    ----------
    link, way
        Over what, and ``up`` to the server or ``down`` from it.
    sent
        Bytes of every client, int64[rounds, clients].
    segments
        In how many ranges values travel; 0 for messages that are not cut.
    hosts
        The rank of every client. Clients of one rank share a port, those of rank 0 (the server) need none. None gives
        every client a port of its own.
    """
    ports = _by_port(sent, hosts)
    width = link.up if way == "up" else link.down
    flow = 8 * np.maximum(ports.max(axis=1, initial=0) / width, ports.sum(axis=1) / link.server)
    if segments == 0:
        taken = link.latency + flow
    else:
        piece = flow / segments
        taken = 4 * link.latency + segments * np.maximum(piece, (piece + 2 * link.latency) / 2)
    return np.asarray(np.where(flow > 0, taken, 0.0))


def _by_port(sent: Counts, hosts: Sequence[int] | None) -> Counts:
    """Return bytes by port, int64[rounds, ports]: without those that never leave the server, joined by rank."""
    if hosts is None:
        return sent
    ranks = [rank for rank in sorted(set(hosts)) if rank != 0]
    columns = [sent[:, [k for k, host in enumerate(hosts) if host == rank]].sum(axis=1) for rank in ranks]
    return np.stack(columns, axis=1) if columns else np.zeros((len(sent), 0), np.int64)
