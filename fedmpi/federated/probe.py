"""The probe A of CRR: how good a model is on data that its client may look at (METHOD section 5).

Higher is better. ``pseudo`` (default): retrieval mAP with held-out training images as queries, relevance = this round's
clusters. ``loss``: minus the mean cross-entropy of held-out images against the cluster centres. ``test``: rank-1 on the
client's test set; it uses test labels, as FedCAPR's own selection does, and the log says so.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedmpi.config import CrrConfig
from fedmpi.reid.datasets import ClientData
from fedmpi.reid.evaluation import score
from fedmpi.reid.features import Viewing, embed
from fedmpi.reid.testing import evaluate
from fedmpi.seeding import Stream, generator


class Probe:
    """Measures A for one client; ``held_out`` (``bool[n]``) marks the training images that it never trains on.

    Of a client with more than ``crr.probe_images`` training images that many are looked at, held-out and other ones in
    proportion.
    """

    def __init__(
        self, data: ClientData, config: CrrConfig, temperature: float, viewing: Viewing, seed: int, client: int
    ) -> None:
        self._data, self._config, self._temperature, self._viewing = data, config, temperature, viewing
        self.held_out = np.zeros(len(data.train), bool)
        if config.enabled and config.probe != "test":
            order = generator(seed, Stream.HOLDOUT, client=client).permutation(len(data.train))
            asked, shown = np.split(order, [round(config.holdout * order.size)])
            self.held_out[asked] = True
            used = min(1.0, config.probe_images / max(1, order.size))
            self._chosen = np.sort(np.concatenate([part[: round(used * part.size)] for part in (asked, shown)]))

    def measure(self, model: nn.Module, labels: NDArray[np.int64] | None) -> float:
        """Return A of ``model``; NaN when it cannot be measured.

        ``labels`` are clusters per training image, ``int64[n]``, -1 = outlier; None before the first clustering.
        """
        if self._config.probe == "test":
            return evaluate(model, self._data, self._viewing, ranks=(1,)).cmc[1]
        if labels is None:
            return math.nan
        z, read = embed(model, self._data.train, self._chosen, self._viewing)
        known = labels[read] >= 0
        features, clusters, asked = (
            functional.normalize(z)[torch.from_numpy(known)],
            labels[read][known],
            self.held_out[read][known],
        )
        if not asked.any() or asked.all():
            return math.nan
        if self._config.probe == "loss":
            return self._minus_cross_entropy(features, clusters, asked)
        # No two images may count as the same view: queries get a camera of their own.
        ask, answer = torch.from_numpy(asked), torch.from_numpy(~asked)
        retrieval = score(
            features[ask],
            clusters[asked],
            np.full(asked.sum(), -1),
            gallery_features=features[answer],
            gallery_pids=clusters[~asked],
            gallery_camids=np.zeros((~asked).sum(), np.int64),
            ranks=(1,),
        )
        return retrieval.mean_ap

    def _minus_cross_entropy(
        self, features: torch.Tensor, clusters: NDArray[np.int64], asked: NDArray[np.bool_]
    ) -> float:
        names, place = np.unique(clusters[~asked], return_inverse=True)
        centres = torch.zeros(names.size, features.shape[1]).index_add_(0, torch.from_numpy(place), features[~asked])
        usable = asked & np.isin(clusters, names)
        if not usable.any():
            return math.nan
        logits = features[usable] @ functional.normalize(centres).T / self._temperature
        return -float(functional.cross_entropy(logits, torch.from_numpy(np.searchsorted(names, clusters[usable]))))
