"""Scores of a saved model on the test images of clients, also of such that took no part in its training."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedmpi.errors import DeviceError
from fedmpi.reid.backbone import build_backbone
from fedmpi.reid.datasets import client_names, load_client
from fedmpi.reid.features import Viewing
from fedmpi.reid.loading import check_bad_share
from fedmpi.reid.protocol import Protocol
from fedmpi.reid.testing import evaluate
from fedmpi.reid.weights import architecture

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedmpi.config import RunConfig
    from fedmpi.reid.evaluation import RetrievalScore
    from fedmpi.reid.images import ClientData

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Scores:
    """What a model reaches.

    Attributes
    ----------
    model_sha256
        Of the model's file.
    arch, protocol
        Backbone, and the protocol in words.
    clients
        Scores by client, in their order.
    """

    model_sha256: str
    arch: str
    protocol: str
    clients: dict[str, RetrievalScore]

    def as_json(self) -> dict[str, object]:
        """Return plain values; what could not be scored is null."""
        rows = {}
        for name, score in self.clients.items():
            ranks = {f"rank{rank}": _number(value) for rank, value in score.cmc.items()}
            rows[name] = {"map": _number(score.mean_ap), **ranks, "queries": score.queries, "skipped": score.skipped}
        return {"model_sha256": self.model_sha256, "arch": self.arch, "protocol": self.protocol, "clients": rows}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def evaluate_file(
    model: Path, config: RunConfig, progress: Callable[[str, RetrievalScore], None] | None = None
) -> Scores:
    """Score a model file on the clients of a run description, by its protocol and at its image size.

    The architecture is the file's own; ``model.last_stride`` and ``model.stem_relu``, which leave no trace in a file,
    are the description's.

    Parameters
    ----------
    progress
        Called with each client's name and score.

    Raises
    ------
    DataError
        The model or the images cannot be used.
    DeviceError
        ``compute.device`` asks for a GPU that is not there.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(config.compute.threads)
    torch.use_deterministic_algorithms(config.run.deterministic)
    arch, m = architecture(model), config.model
    net = build_backbone(arch, weights=model, last_stride=m.last_stride, stem_relu=m.stem_relu, seed=0)
    device = _device(config.compute.device)
    d, e = config.data, config.evaluation
    viewing = Viewing(d.height, d.width, e.batch_size, d.workers, device, PRECISIONS[config.compute.precision])
    protocol, clients = Protocol.of(e.protocol), {}
    net.to(device)
    for index, name in enumerate(client_names(d, config.run.seed)):
        data = load_client(d, config.run.seed, index)
        clients[name] = evaluate(net, data, viewing, ranks=e.ranks, protocol=protocol)
        _check(data, d.max_bad_share)
        if progress is not None:
            progress(name, clients[name])
    return Scores(str(net.weights_sha256), arch, protocol.name, clients)


def _check(data: ClientData, max_share: float) -> None:
    for images in (data.query, data.gallery):
        check_bad_share(images, max_share)


def _device(wanted: str) -> torch.device:
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        message = "compute.device: cuda, but no GPU is visible"
        raise DeviceError(message)
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
