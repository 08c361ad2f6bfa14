"""Evaluation of a model on a client's own query and gallery (METHOD section 7)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmpi.reid.evaluation import RetrievalScore, score
from fedmpi.reid.features import Viewing, embed
from fedmpi.reid.images import ClientData, ImageList
from fedmpi.reid.protocol import STANDARD, Protocol


def evaluate(
    model: nn.Module, data: ClientData, viewing: Viewing, *, ranks: Sequence[int], protocol: Protocol = STANDARD
) -> RetrievalScore:
    """Return mAP and CMC of ``model`` on the test images of ``data``."""
    q, query = _embedded(model, data.query, viewing, flip=protocol.flip)
    g, gallery = _embedded(model, data.gallery, viewing, flip=protocol.flip)
    return score(
        q,
        data.query.pids[query],
        data.query.camids[query],
        gallery_features=g,
        gallery_pids=data.gallery.pids[gallery],
        gallery_camids=data.gallery.camids[gallery],
        ranks=ranks,
        protocol=protocol,
    )


def _embedded(
    model: nn.Module, images: ImageList, viewing: Viewing, *, flip: bool
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    return embed(model, images, np.arange(len(images)), viewing, flip=flip)
