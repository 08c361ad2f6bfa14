"""FedPav: federated partial averaging, by number of images or by cosine distance.

What it leaves at the clients is the classifier; the network here has none, since training is unsupervised.
"""

from fedmpi.config import RunConfig
from fedmpi.federated.composition import Method
from fedmpi.federated.weighting import ByImages, Cdw


def build(config: RunConfig) -> Method:
    """Return FedPav with the run's weights."""
    return Method(weighting=Cdw() if config.fedpav.weights == "cdw" else ByImages())
