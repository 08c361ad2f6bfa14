"""FedProx: FedAvg, and every client is held near the model that it received."""

from fedmpi.config import RunConfig
from fedmpi.federated.composition import Method
from fedmpi.reid.regularisers import Proximal


def build(config: RunConfig) -> Method:
    """Return FedProx with the run's mu."""
    return Method(regulariser=Proximal(config.fedprox.mu))
