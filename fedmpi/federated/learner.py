"""The networks of one rank: a model that the hosted clients use in turn, and a frozen teacher beside it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmpi.comm.parcels import Parcel
from fedmpi.comm.staging import Staging
from fedmpi.config import RunConfig
from fedmpi.federated.spill import Spill
from fedmpi.reid.backbone import ReIDNet, build_backbone
from fedmpi.reid.features import Viewing
from fedmpi.reid.training import freeze
from fedmpi.seeding import Stream, integer_seed
from fedmpi.sparse import Layout, Mask

Theta = NDArray[np.float32]
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def initial_model(config: RunConfig) -> ReIDNet:
    """Return the untrained network; the same bits on every rank."""
    m = config.model
    seed = integer_seed(config.run.seed, Stream.MODEL_INIT)
    return build_backbone(m.arch, weights=m.weights, last_stride=m.last_stride, stem_relu=m.stem_relu, seed=seed)


class Learner:
    """Model and teacher of a rank on its device, moved to and from flat vectors.

    ``interrupt`` is called before every batch of training, embedding and evaluation; it may raise to end the work.
    ``spill`` is the room for what the hosted clients hold.
    """

    def __init__(self, config: RunConfig, device: torch.device, interrupt: Callable[[], None] = lambda: None) -> None:
        self.config, self.spill = config, Spill.of(config)
        self.model = initial_model(config).to(device)
        self.teacher = freeze(self.model)
        self.layout = Layout.of(self.model)
        self.prunable = [t.slice for t in self.layout.tensors if t.prunable]
        staged = config.compute.staging and device.type == "cuda"
        self.staging = Staging(device, self.layout.size) if staged else None
        c = config
        self.viewing = Viewing(
            c.data.height,
            c.data.width,
            c.evaluation.batch_size,
            c.data.workers,
            device,
            PRECISIONS[c.compute.precision],
            interrupt,
        )

    def receive(self, parcel: Parcel) -> Theta:
        """Return a received model in its places, ``float32[N]`` on the host; one that arrived on the GPU stays there.

        It must not be changed.
        """
        if isinstance(parcel.values, torch.Tensor) and self.staging is not None:
            return self.spill.keep(self.staging.arrived(parcel.values, parcel.positions))
        return self.spill.keep(parcel.dense(self.spill.empty))

    def load(self, theta: Theta, buffers: Theta, mask: Mask | None = None) -> ReIDNet:
        """Put a flat model into the network and return it.

        ``mask``, where given, keeps all entries that are not zero: a GPU is sent no others.
        """
        self.layout.load(self.model, self._placed(theta, mask), buffers)
        return self.model

    def load_teacher(self, theta: Theta, buffers: Theta, mask: Mask | None = None) -> nn.Module:
        """Put a flat model into the teacher and return it; ``mask`` as for `load`."""
        self.layout.load(self.teacher, self._placed(theta, mask), buffers)
        return self.teacher

    def initial(self) -> tuple[Theta, Theta]:
        """Return the untrained network as `read` does; it is made anew, so that nobody has to keep it."""
        return self.layout.flatten(initial_model(self.config))

    def read(self, mask: Mask | None = None) -> tuple[Theta, Theta]:
        """Return the network as (theta ``float32[N]``, buffers ``float32[B]``); ``mask`` as for `load`."""
        if self.staging is None:
            return self.layout.flatten(self.model)
        theta, buffers = self.layout.gather(self.model)
        self.staging.start(theta, mask or Mask.full(self.layout.size))
        rest = buffers.cpu().numpy()  # while the values are on their way
        return self.staging.finish(), rest

    def free(self) -> None:
        """Give back what a GPU's transfers hold of the host's memory."""
        if self.staging is not None:
            self.staging.free()

    def _placed(self, theta: Theta, mask: Mask | None) -> Theta | torch.Tensor:
        if self.staging is None:
            return theta
        return self.staging.up(theta, mask or Mask.full(self.layout.size))

    def keep(self, kept: NDArray[np.bool_]) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Return the parameters that ``kept`` (``bool[N]``) prunes, each with its mask in its shape and dtype."""
        parameters = dict(self.model.named_parameters())
        pairs = []
        for name, where, shape, _ in self.layout.tensors:
            if not kept[where].all():
                parameter = parameters[name]
                mask = torch.from_numpy(kept[where]).reshape(shape).to(parameter.device)
                pairs.append((parameter, mask.to(parameter.dtype)))  # widened there: a quarter of the bytes cross
        return pairs


@contextmanager
def deterministic(config: RunConfig) -> Iterator[None]:
    """Fix what could change bits: deterministic kernels, and the number of CPU threads of a client."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.set_num_threads(config.compute.threads)
    torch.use_deterministic_algorithms(config.run.deterministic)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.backends.cudnn.benchmark = before[2]
