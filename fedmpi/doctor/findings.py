"""What an examination brings to light: facts by part, and findings with what to do about them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["error", "warning"]
Fact = str | int | float | bool | None


@dataclass(frozen=True)
class Finding:
    """Something that would go wrong (error) or go badly (warning), and what to do about it unless it says so itself."""

    level: Level
    what: str
    advice: str = ""


@dataclass
class Part:
    """One part of the examination.

    ``facts`` by name; a name that ends with ``_bytes`` is shown in decimal units.
    """

    title: str
    facts: dict[str, Fact] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def error(self, what: str, advice: str = "") -> None:
        """Note what would fail."""
        self.findings.append(Finding("error", what, advice))

    def warning(self, what: str, advice: str = "") -> None:
        """Note what would work, but not well."""
        self.findings.append(Finding("warning", what, advice))


def as_json(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """Return parts as plain lists and dictionaries."""
    return [asdict(part) for part in parts]


def from_json(parts: Iterable[Mapping[str, Any]]) -> list[Part]:
    """Return what `as_json` made."""
    return [Part(p["title"], p["facts"], [Finding(**finding) for finding in p["findings"]]) for p in parts]


def merged(findings: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Return the findings of all ranks once each, errors first.

    ``findings`` holds those of rank 0, 1, ...; one that not every rank has names the ranks that do.
    """
    holders: dict[Finding, list[int]] = {}
    for rank, found in enumerate(findings):
        for finding in found:
            holders.setdefault(finding, []).append(rank)
    result = [
        f if len(set(ranks)) == len(findings) else Finding(f.level, f"{_ranks(ranks)}: {f.what}", f.advice)
        for f, ranks in holders.items()
    ]
    return sorted(result, key=lambda finding: finding.level != "error")


def _ranks(ranks: Sequence[int]) -> str:
    unique = sorted(set(ranks))
    return f"rank {unique[0]}" if len(unique) == 1 else f"ranks {', '.join(map(str, unique))}"


def size(count: float) -> str:
    """Return bytes in decimal units (1 MB = 1e6)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
