"""LotteryFL: clients look for lottery tickets, pruned before training and rewound to the initial weights."""

from fedmpi.config import RunConfig
from fedmpi.federated.composition import Method
from fedmpi.federated.sparsity import Lottery
from fedmpi.federated.weighting import Uniform


def build(config: RunConfig) -> Method:
    """Return LotteryFL with the run's settings."""
    return Method(weighting=Uniform(), sparsity=Lottery(config.lotteryfl))
