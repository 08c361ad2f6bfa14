"""How the values of a message travel: ``wire``."""

from typing import Literal

from fedmpi.config.base import OptionalNumber, Section, key


class WireConfig(Section):
    """Coding of the parameter values. Lossless coding changes bytes and seconds, never a bit of the result."""

    values: Literal["auto", "raw", "lossless", "bf16", "fp16"] = key(
        "auto",
        "raw = float32 as it is; lossless = the same bits in fewer bytes, coded against values that both ends hold; "
        "auto = whichever of these two `wire.prefer` wants; bf16, fp16 = rounded to nearest even on the wire "
        "(relative error up to 0.4 % and 0.05 %), summed in float32.",
        source="fedmpi",
    )
    prefer: Literal["time", "bytes"] = key(
        "time",
        "What `wire.values: auto` makes small. time = lossless where the link is so slow that it arrives sooner, by "
        "`wire.bandwidth_mb_s` and the speed of the coder, measured at the start; bytes = always lossless.",
        source="fedmpi",
    )
    bandwidth_mb_s: OptionalNumber = key(
        None,
        "Bandwidth of the slowest link. null = measured at the start, memory of one host not counted; a number makes "
        "the choice the same in every run, unless it is close.",
        source="fedmpi",
        unit="MB/s (1e6 byte/s)",
        gt=0.0,
        le=1e9,
    )
