"""FedKLPR: KLL, KLPWA, SAS, gradual pruning and CRR, each with its switch."""

from fedmpi.config import RunConfig
from fedmpi.federated.composition import Method
from fedmpi.federated.sparsity import Gradual
from fedmpi.federated.weighting import Klpwa
from fedmpi.reid.regularisers import KL


def build(config: RunConfig) -> Method:
    """Return FedKLPR without the parts that the run switches off."""
    kll = KL(config.kll.weight, config.kll.start_round, config.kll.temperature, config.kll.features)
    return Method(
        regulariser=kll if config.kll.enabled else None,
        weighting=Klpwa(config.klaw, config.praw, config.klpwa),
        sparsity=Gradual(config.pruning, config.crr, config.sas),
    )
