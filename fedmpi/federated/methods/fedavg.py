"""FedAvg: the mean of dense models, by number of training images."""

from fedmpi.config import RunConfig
from fedmpi.federated.composition import Method


def build(config: RunConfig) -> Method:  # noqa: ARG001  (it has no settings)
    """Return FedAvg."""
    return Method()
