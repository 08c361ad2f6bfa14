"""A method as three small things: what is added to the local loss, how clients are weighted, what they prune."""

from dataclasses import dataclass, field
from importlib import import_module

from fedmpi.config import RunConfig
from fedmpi.federated.sparsity import Dense
from fedmpi.federated.weighting import ByImages, Weighting
from fedmpi.reid.regularisers import Regulariser


@dataclass(frozen=True)
class Method:
    """A federated method; the defaults are FedAvg. Everything else of a round is the same for all methods.

    Attributes
    ----------
    regulariser
        Added to the local loss; None adds nothing.
    weighting
        How much each client counts in the mean.
    sparsity
        Which weights a client keeps. Values that it does not keep travel in neither direction.
    exchanges
        Whether there is a federation at all; else every client keeps its own model, and nothing is pruned.
    pooled
        Without exchange: client 0 alone trains, on the images of all.
    """

    regulariser: Regulariser | None = None
    weighting: Weighting = field(default_factory=ByImages)
    sparsity: Dense = field(default_factory=Dense)
    exchanges: bool = True
    pooled: bool = False


def build(config: RunConfig) -> Method:
    """Return the method that ``config.method`` names: what ``build`` of that file in ``methods/`` makes of the run."""
    made: Method = import_module(f"fedmpi.federated.methods.{config.method}").build(config)
    return made
