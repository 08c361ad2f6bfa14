"""FedCAPR: the dense base of FedKLPR, with a cosine penalty and cosine distance weights."""

from fedmpi.config import RunConfig
from fedmpi.federated.composition import Method
from fedmpi.federated.weighting import Cdw
from fedmpi.reid.regularisers import Cosine


def build(config: RunConfig) -> Method:
    """Return FedCAPR with the run's penalty."""
    c = config.fedcapr
    return Method(regulariser=Cosine(c.weight, c.start_round), weighting=Cdw())
