"""Which coding a message's values take: as configured, or the one that a cost model says arrives first.

Lossless values are the same bits, so the choice changes bytes and seconds but never a result. All ranks choose by the
same figures, measured on one of them or configured.
"""

from dataclasses import dataclass

from fedmpi.sparse import ValueCoding

FIXED = {"raw": ValueCoding.RAW_F32, "bf16": ValueCoding.BF16, "fp16": ValueCoding.FP16}
EXPECTED_RATIO = {ValueCoding.LOSSLESS: 0.85, ValueCoding.LOSSLESS_DELTA: 0.72}
"""Bytes against raw ones that the model counts on: trained weights by themselves, and against what was sent down."""


@dataclass(frozen=True)
class Wire:
    """The choice, and what it rests on.

    Attributes
    ----------
    values
        ``raw``, ``lossless``, ``bf16``, ``fp16``, or ``auto``: raw or lossless.
    prefer
        What ``auto`` makes small: ``time`` (of the exchange) or ``bytes``.
    bandwidth
        Of the slowest link, in bytes a second; infinite where nothing leaves the process.
    encode, decode
        Raw bytes a second of the lossless coder.
    """

    values: str = "raw"
    prefer: str = "time"
    bandwidth: float = float("inf")
    encode: float = 1.0
    decode: float = 1.0

    def coding(self, *, reference: bool) -> ValueCoding:
        """Return the coding of a message; ``reference`` says whether both ends hold earlier values. *Not collective.*

        ``auto`` takes lossless when ``ratio / bandwidth + 1 / encode + 1 / decode < 1 / bandwidth``: coding is counted
        as if it never overlapped with the transfer, so a choice for it is safe.
        """
        if self.values in FIXED:
            return FIXED[self.values]
        lossless = ValueCoding.LOSSLESS_DELTA if reference else ValueCoding.LOSSLESS
        if self.values == "lossless" or self.prefer == "bytes":
            return lossless
        saved = (1 - EXPECTED_RATIO[lossless]) / self.bandwidth
        return lossless if saved > 1 / self.encode + 1 / self.decode else ValueCoding.RAW_F32
