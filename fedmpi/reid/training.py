"""Local training of one client in one round: FedCAPR's unsupervised recipe and a regulariser (METHOD section 2).

Every local epoch: embed all training images, cluster them, rebuild the camera-aware proxy memory, then one pass of
proxy batches. Weights that the mask prunes are held at zero.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedmpi.config import LocalConfig, RunConfig
from fedmpi.errors import TrainingError
from fedmpi.reid.clustering import cluster, renumber
from fedmpi.reid.features import Viewing, embed
from fedmpi.reid.images import ImageList
from fedmpi.reid.loading import batches
from fedmpi.reid.losses import inter_camera_loss, intra_camera_loss
from fedmpi.reid.proxies import ProxyMemory
from fedmpi.reid.regularisers import Batch, Regulariser
from fedmpi.reid.sampling import proxy_batches
from fedmpi.reid.transforms import AugmentPlan
from fedmpi.seeding import Stream, generator

TERMS = ("total", "intra", "inter", "kl")


@dataclass(frozen=True)
class Task:
    """What is trained on, by whom and when.

    Attributes
    ----------
    images
        The client's training images.
    repeats
        How often each image counts in an epoch (IDE; 1 = off).
    held_out
        ``bool[n]``: images that are clustered but never trained on (the probe's queries).
    client, round, last_round
        The address of all random draws, and whether the last round's schedule applies.
    regulariser
        What keeps the model near the received one, if anything does.
    """

    images: ImageList
    repeats: int
    held_out: NDArray[np.bool_]
    client: int
    round: int
    last_round: bool
    regulariser: Regulariser | None = None


@dataclass
class TrainingReport:
    """What local training did: means over the batches of the last epoch that had any, and the last epoch's clusters."""

    labels: NDArray[np.int64]
    losses: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TERMS, math.nan))
    clusters: int = 0
    outliers: int = 0
    batches: int = 0
    idle_epochs: int = 0
    seconds_cluster: float = 0.0


def train_local(
    model: nn.Module,
    teacher: nn.Module,
    keep: Sequence[tuple[nn.Parameter, torch.Tensor]],
    task: Task,
    config: RunConfig,
    viewing: Viewing,
    *,
    after_epoch: Callable[[int], None] | None = None,
) -> TrainingReport:
    """Train ``model`` in place and say what happened.

    Parameters
    ----------
    model
        Starts as the received personalized model.
    teacher
        Frozen copy of what was received, the reference of the regulariser.
    keep
        Pairs of a pruned parameter and its mask, same shape, 1 where kept; parameters that are whole are left out.
    task, config, viewing
        See their classes.
    after_epoch
        Called with the number of every finished local epoch; it must leave the model as it is.

    Raises
    ------
    TrainingError
        When a loss is not finite; the message names round, epoch and batch.
    """
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.local.lr,
        weight_decay=config.local.weight_decay,
        fused=True,
    )
    scaler = torch.amp.GradScaler(viewing.device.type, enabled=viewing.precision is torch.float16)
    stepper = Stepper(optimizer, scaler, keep)
    report = TrainingReport(np.full(len(task.images), -1, np.int64))
    for epoch in range(config.local.last_round_epochs if task.last_round else config.local.epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.local, task.round, epoch, last_round=task.last_round)
        start = time.perf_counter()
        memory, index = _proxies(model, task, config, viewing, report)
        report.seconds_cluster += time.perf_counter() - start
        _train_epoch(model, teacher, stepper, memory, index, task, epoch, config, viewing, report)
        if after_epoch is not None:
            after_epoch(epoch)
    return report


def learning_rate(local: LocalConfig, round: int, epoch: int, *, last_round: bool) -> float:
    """Return the learning rate of one local epoch (FedCAPR's schedule).

    ``lr``, from ``lr_late_round`` on ``lr_late``. The last round warms up linearly from ``last_round_warmup_factor``
    over ``last_round_warmup_epochs`` and is multiplied by ``last_round_decay`` at each of ``last_round_decay_epochs``.
    """
    base = local.lr_late if round >= local.lr_late_round else local.lr
    if not last_round:
        return base
    decays = sum(epoch >= at for at in local.last_round_decay_epochs)
    warm = 1.0
    if epoch < local.last_round_warmup_epochs:
        first = local.last_round_warmup_factor
        warm = first + (1 - first) * epoch / local.last_round_warmup_epochs
    return float(base * warm * local.last_round_decay**decays)


def freeze(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in evaluation mode that takes no gradients."""
    teacher = copy.deepcopy(model).eval()
    return teacher.requires_grad_(requires_grad=False)


def _proxies(
    model: nn.Module, task: Task, config: RunConfig, viewing: Viewing, report: TrainingReport
) -> tuple[ProxyMemory, NDArray[np.int64]]:
    """Cluster the training images and build the proxies.

    Returns the memory and, aligned with its ``proxies``, the image behind each row (rows repeat under IDE).
    """
    z, read = embed(model, task.images, np.arange(len(task.images)), viewing)
    index = np.repeat(read, task.repeats)
    features = functional.normalize(z).repeat_interleave(task.repeats, dim=0)
    if config.data.labels:
        labels = renumber(task.images.pids[index])
    else:
        c = config.clustering
        labels = cluster(features, k1=c.k1, k2=c.k2, eps=c.eps, min_samples=c.min_samples, interrupt=viewing.interrupt)
    report.labels[:] = -1
    report.labels[index] = labels
    report.clusters = int(labels.max(initial=-1)) + 1
    report.outliers = int(np.count_nonzero(report.labels[read] < 0))
    camids = task.images.camids[index]
    return ProxyMemory.build(features.to(viewing.device), labels, camids, momentum=config.loss.momentum), index


def _train_epoch(
    model: nn.Module,
    teacher: nn.Module,
    stepper: "Stepper",
    memory: ProxyMemory,
    index: NDArray[np.int64],
    task: Task,
    epoch: int,
    config: RunConfig,
    viewing: Viewing,
    report: TrainingReport,
) -> None:
    model.train()
    sums = torch.zeros(len(TERMS), dtype=torch.float64)
    count = 0
    for pixels, proxies in _batches(memory, index, task, epoch, config, viewing):
        features, losses = _losses(model, teacher, pixels, proxies, memory, task, config, viewing)
        values = torch.stack([x.detach() for x in losses]).double().cpu()
        if not torch.isfinite(values).all():
            terms = ", ".join(f"{name} {value:g}" for name, value in zip(TERMS, values.tolist(), strict=True))
            message = (
                f"the loss is not finite in round {task.round}, epoch {epoch}, batch {count}: {terms}; lower local.lr"
            )
            raise TrainingError(message)
        stepper.step(losses[0])
        memory.update(features.detach(), proxies)
        sums += values
        count += 1
    if count:
        report.losses = dict(zip(TERMS, (sums / count).tolist(), strict=True))
        report.batches += count
    else:
        # Nothing to learn from this epoch; the model is left as it is and the log says so.
        report.idle_epochs += 1


def _batches(
    memory: ProxyMemory, index: NDArray[np.int64], task: Task, epoch: int, config: RunConfig, viewing: Viewing
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (pixels ``float32[b, 3, H, W]``, proxies ``int64[b]``) on the device; b >= 2 for the batch norms."""
    seed = config.run.seed
    address = {"client": task.client, "round": task.round, "step": epoch}
    proxies = np.where(task.held_out[index], -1, memory.proxies)
    rows = proxy_batches(
        proxies, config.local.batch_size, config.local.images_per_proxy, generator(seed, Stream.SAMPLER, **address)
    )
    draw = generator(seed, Stream.AUGMENT, **address)
    augment = config.local.augment
    plans = [AugmentPlan.draw(draw, len(r), viewing.height, viewing.width, augment) for r in rows]
    loaded = batches(
        task.images,
        [index[r] for r in rows],
        viewing.height,
        viewing.width,
        plans=plans,
        workers=viewing.workers,
        pin=viewing.pin,
        interrupt=viewing.interrupt,
    )
    for (pixels, found), r in zip(loaded, rows, strict=True):
        readable = np.isin(index[r], found)
        if len(found) >= 2:
            yield (
                pixels.to(viewing.device, non_blocking=True),
                torch.from_numpy(proxies[r[readable]]).to(viewing.device),
            )


def _losses(
    model: nn.Module,
    teacher: nn.Module,
    pixels: torch.Tensor,
    proxies: torch.Tensor,
    memory: ProxyMemory,
    task: Task,
    config: RunConfig,
    viewing: Viewing,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return the normalised features of one batch and its losses in the order of TERMS.

    ``kl`` is the regulariser, unweighted, whichever it is; 0 where there is none.
    """
    c = config.loss
    with viewing.autocast():
        z = model(pixels).float()
    features = functional.normalize(z)
    intra = intra_camera_loss(features, proxies, memory, temperature=c.temperature)
    inter = inter_camera_loss(features, proxies, memory, temperature=c.temperature, negatives=c.negatives)
    kl = torch.zeros((), device=z.device)
    total = c.intra * intra + c.inter * inter
    regulariser = task.regulariser
    if regulariser is not None and task.round >= regulariser.start_round:
        kl = regulariser.penalty(Batch(model, teacher, pixels, z, viewing))
        total = total + regulariser.weight * kl
    return features, (total, intra, inter, kl)


@dataclass(frozen=True)
class Stepper:
    """Optimizer steps that leave pruned weights at exactly zero.

    With a zero weight and a zero gradient Adam's moments stay zero, weight decay included, so masking the gradient is
    enough. The scaler keeps fp16 gradients from underflowing and does nothing at other precisions.
    """

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    keep: Sequence[tuple[nn.Parameter, torch.Tensor]]

    def step(self, loss: torch.Tensor) -> None:
        """Go one step down the gradient of ``loss``."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        for parameter, mask in self.keep:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        self.scaler.step(self.optimizer)
        self.scaler.update()
