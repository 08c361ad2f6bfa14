"""Centralised training: one client with the images of all, tested by every client: the bound above every federation."""

from fedmpi.config import RunConfig
from fedmpi.federated.composition import Method


def build(config: RunConfig) -> Method:  # noqa: ARG001  (it has no settings)
    """Return training without a federation."""
    return Method(exchanges=False, pooled=True)
