"""The protocol of a retrieval score, and its name in logs and files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fedmpi.config.protocol import ProtocolConfig


@dataclass(frozen=True)
class Rerank:
    """k-reciprocal re-ranking: sizes of the neighbourhoods, and the share of the original distance."""

    k1: int = 20
    k2: int = 6
    weight: float = 0.3


@dataclass(frozen=True)
class Protocol:
    """How answers are ranked and scored.

    Attributes
    ----------
    ap
        ``mean``: mean of the precision at the correct answers; ``trapezoid``: area under the precision-recall polygon.
    unmatched
        Queries without any correct answer: ``skip`` them, or score them ``zero``.
    flip
        Whether embeddings are sums over the image and its mirror image.
    rerank
        Re-ranking of the whole query set, None for single queries.
    """

    ap: Literal["mean", "trapezoid"] = "mean"
    unmatched: Literal["skip", "zero"] = "skip"
    flip: bool = False
    rerank: Rerank | None = None

    @classmethod
    def of(cls, config: ProtocolConfig) -> Protocol:
        """Return the protocol that a run description asks for."""
        r = config.rerank
        return cls(config.ap, config.unmatched, config.flip, Rerank(r.k1, r.k2, r.weight) if r.enabled else None)

    @property
    def name(self) -> str:
        """The protocol in words: ``cosine, AP mean, unmatched skip, no flip, no re-ranking``."""
        r = self.rerank
        ranking = f"re-ranking k1={r.k1} k2={r.k2} weight={r.weight:g}" if r else "no re-ranking"
        return f"cosine, AP {self.ap}, unmatched {self.unmatched}, {'flip' if self.flip else 'no flip'}, {ranking}"


STANDARD = Protocol()
"""Market-1501's protocol, as METHOD section 7 and FedCAPR have it."""
