"""Evaluation of a model on a client's own query and gallery (METHOD section 7)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmpi.reid.evaluation import RetrievalScore, score
from fedmpi.reid.features import Viewing, embed
from fedmpi.reid.images import ClientData, ImageList


def evaluate(model: nn.Module, data: ClientData, viewing: Viewing, *, ranks: Sequence[int]) -> RetrievalScore:
    """Return mAP and CMC of ``model`` on the test images of ``data``: cosine, single query, no re-ranking."""
    q, query = _embedded(model, data.query, viewing)
    g, gallery = _embedded(model, data.gallery, viewing)
    return score(
        q,
        data.query.pids[query],
        data.query.camids[query],
        gallery_features=g,
        gallery_pids=data.gallery.pids[gallery],
        gallery_camids=data.gallery.camids[gallery],
        ranks=ranks,
    )


def _embedded(model: nn.Module, images: ImageList, viewing: Viewing) -> tuple[torch.Tensor, NDArray[np.int64]]:
    return embed(model, images, np.arange(len(images)), viewing)
