"""Settings that are allowed but deserve a word at the start of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedmpi.config.model import RunConfig

NORMALIZED_TEMPERATURE = 0.5
"""Above this temperature the KL of L2-normalised features is at most (1 - cos)/(512 * 0.25), below 1 % of a cosine."""


PROBING = {"lotteryfl", "subfedavg"}
"""Methods that ask the probe of ``crr`` without CRR itself."""


def cautions(config: RunConfig) -> Iterator[str]:
    """Yield one line per setting that leaks, does nothing, or cannot be reached."""
    yield from _method_cautions(config)
    yield from _schedule_cautions(config)


def _method_cautions(config: RunConfig) -> Iterator[str]:
    crr, kll = config.crr, config.kll
    if (crr.enabled or config.method in PROBING) and crr.probe == "test":
        yield "crr.probe = test decides by the test labels: its scores are not comparable with unsupervised ones"
    if kll.enabled and kll.features == "normalized" and kll.temperature > NORMALIZED_TEMPERATURE:
        yield f"kll.features = normalized with kll.temperature = {kll.temperature:g} makes a KL term that vanishes"
    if config.method == "subfedavg" and config.local.epochs == 1:
        yield "method = subfedavg with local.epochs = 1 never prunes: it compares the masks of two local epochs"
    if config.data.labels:
        yield "data.labels = true trains on the true identities: this run is supervised"


def _schedule_cautions(config: RunConfig) -> Iterator[str]:
    rounds, local, pruning = config.federation.rounds, config.local, config.pruning
    if config.kll.enabled and config.kll.start_round >= rounds:
        yield f"kll.start_round = {config.kll.start_round} is never reached in {rounds} rounds"
    needed = pruning_rounds(pruning.step, pruning.target)
    if pruning.enabled and pruning.start_round + needed > rounds:
        reached = 1.0 - (1.0 - pruning.step) ** max(0, rounds - pruning.start_round)
        yield f"pruning.target = {pruning.target:g} is not reached: at most {reached:.2f} pruned after {rounds} rounds"
    if local.last_round_warmup_epochs >= local.last_round_epochs:
        yield (
            f"local.last_round_warmup_epochs = {local.last_round_warmup_epochs} fills the last round of "
            f"{local.last_round_epochs} local epochs"
        )
    late = [epoch for epoch in local.last_round_decay_epochs if epoch >= local.last_round_epochs]
    if late:
        yield f"local.last_round_decay_epochs = {late}: the last round has only {local.last_round_epochs} epochs"


def pruning_rounds(step: float, target: float) -> int:
    """Return how many pruning events of share ``step`` reach the pruned share ``target`` (the last may be smaller)."""
    return math.ceil(math.log1p(-target) / math.log1p(-step) - 1e-9)
