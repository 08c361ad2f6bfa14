"""An examination as text for people and as JSON for programs."""

import json
from collections.abc import Sequence

from fedmpi import __version__
from fedmpi.doctor.examination import Examination
from fedmpi.doctor.findings import Fact, Finding, Part, as_json, size


def text(examination: Examination) -> str:
    """Return facts by part, who runs where, and what would go wrong."""
    lines = [f"fedmpi {__version__} doctor", ""]
    for part in examination.parts:
        lines += [*part_lines(part), ""]
    if len(examination.seats) > 1:
        lines += [*_seats(examination), ""]
    return "\n".join([*lines, *_verdict(examination)])


def part_lines(part: Part) -> list[str]:
    """Return a part as text, one aligned line per fact."""
    labels = {name: name.removesuffix("_bytes").replace("_", " ") for name in part.facts}
    width = max(map(len, labels.values()), default=0)
    return [part.title, *(f"  {label:<{width}}  {_shown(name, part.facts[name])}" for name, label in labels.items())]


def _shown(name: str, fact: Fact) -> str:
    if fact is None:
        return "--"
    return size(fact) if name.endswith("_bytes") and isinstance(fact, int | float) else str(fact)


def _seats(examination: Examination) -> list[str]:
    lines = ["placement"]
    for seat in examination.seats:
        clients = ", ".join(f"{c} {examination.clients[c]}" for c in seat.clients)
        roles = [role for role in ("server" * (seat.rank == 0), f"client {clients}" * bool(clients)) if role]
        lines.append(f"  rank {seat.rank:<4} {seat.host}  {seat.device:<6}  {' + '.join(roles)}")
    return lines


def _verdict(examination: Examination) -> list[str]:
    lines = ["what would go wrong"]
    for number, finding in enumerate(examination.findings, 1):
        lines.append(f"  {number}. {finding.level}: {finding.what}")
        lines += [f"     do: {finding.advice}"] if finding.advice else []
    if not examination.findings:
        lines.append("  nothing that could be found here")
    if examination.code == 0:
        lines.append(f"  to start: {examination.command}")
    return lines


def as_text_or_json(examination: Examination, *, wants_json: bool) -> str:
    """Return the examination in one of its two forms."""
    return as_json_text(examination) if wants_json else text(examination)


def as_json_text(examination: Examination) -> str:
    """Return everything as one JSON object; ``ok`` says that nothing would fail."""
    content = {
        "fedmpi": __version__,
        "ok": examination.code == 0,
        "command": examination.command,
        "parts": {part["title"]: part["facts"] for part in as_json(examination.parts)},
        "ranks": [
            {"rank": seat.rank, "host": seat.host, "device": seat.device, "clients": list(seat.clients)}
            for seat in examination.seats
        ],
        "findings": _findings(examination.findings),
    }
    return json.dumps(content, indent=2)


def _findings(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [{"level": f.level, "what": f.what, "advice": f.advice} for f in findings]
