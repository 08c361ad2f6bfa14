"""A federation that trains in a second: two small clients, and a network of 2000 parameters instead of a ResNet."""

from collections.abc import Callable
from pathlib import Path

import torch
from mpi4py import MPI
from torch import nn
from torch.nn import functional

from fedmpi import train
from fedmpi.comm import Patience, Ranks
from fedmpi.config import RunConfig, load_config
from fedmpi.federated.round import World
from fedmpi.reid.datasets import client_names
from fedmpi.stopping import Stopper

CLIENTS = ("prid", "ilids")
TEXT = """
run: {name: tiny}
data: {clients: [prid, ilids], height: 32, width: 16, synthetic: {identities: 0.3}}
federation: {rounds: 2}
local:
  epochs: 1
  last_round_epochs: 1
  last_round_warmup_epochs: 0
  last_round_decay_epochs: []
  batch_size: 16
  augment: {pad: 2}
clustering: {k1: 6, k2: 2, min_samples: 2}
pruning: {step: 0.2}
comm: {segment_mb: 0.002, deadline_s: 200.0}
"""


class TinyNet(nn.Module):
    """Two convolutions, a linear layer and a BN-neck; the interface of `fedmpi.reid.backbone.ReIDNet`."""

    dim = 16
    weights_sha256 = None

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, stride=2)
        self.linear = nn.Linear(16, self.dim, bias=False)
        self.neck = nn.BatchNorm1d(self.dim)
        self.neck.bias.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float32[B, 3, H, W] to float32[B, 16]."""
        x = functional.relu(self.norm(self.first(images)))
        x = functional.relu(self.second(x)).mean(dim=(2, 3))
        return self.neck(self.linear(x))


def tiny_model(config: RunConfig) -> TinyNet:
    """Stand in for `fedmpi.federated.learner.initial_model`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.run.seed)
        return TinyNet()


def one_process(config: RunConfig) -> World:
    """Return the world of a run in this process alone; the caller frees its ranks."""
    ranks = Ranks.create(MPI.COMM_SELF, len(client_names(config.data, config.run.seed)))
    return train._set_up(ranks, Patience(), config, Stopper(0.0, environment={}))[0]


def write_config(folder: Path) -> Path:
    """Write the description of the tiny run and return its path."""
    path = folder / "tiny.yaml"
    path.write_text(TEXT)
    return path


def reader(folder: Path) -> Callable[..., RunConfig]:
    """Return a function from ``section.key=value`` texts to the tiny run with these changes."""
    path = write_config(folder)
    return lambda *overrides: load_config(path, overrides)
