"""Sub-FedAvg: clients prune what two masks of a local training settle on."""

from fedmpi.config import RunConfig
from fedmpi.federated.composition import Method
from fedmpi.federated.sparsity import Settled
from fedmpi.federated.weighting import Uniform


def build(config: RunConfig) -> Method:
    """Return Sub-FedAvg (unstructured) with the run's settings."""
    return Method(weighting=Uniform(), sparsity=Settled(config.subfedavg))
