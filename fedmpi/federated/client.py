"""One client: what it does with a received model on its own data, until there is an update to send."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm.parcels import Parcel, Room
from fedmpi.config import RunConfig
from fedmpi.errors import DataError, TrainingError
from fedmpi.federated.composition import build
from fedmpi.federated.history import MaskHistory
from fedmpi.federated.learner import Learner
from fedmpi.federated.measurements import Measurements
from fedmpi.federated.probe import Probe
from fedmpi.federated.sparsity import Site
from fedmpi.pruning import CrrState, decide_recovery, density
from fedmpi.reid.datasets import ClientData, ImageList, repeats
from fedmpi.reid.evaluation import RetrievalScore
from fedmpi.reid.features import embed
from fedmpi.reid.loading import check_bad_share
from fedmpi.reid.protocol import Protocol
from fedmpi.reid.testing import evaluate
from fedmpi.reid.training import Task, TrainingReport, train_local
from fedmpi.sparse import Mask
from fedmpi.sparse.kernels import pack

Flat = tuple[NDArray[np.float32], NDArray[np.float32]]
NAMED_AT_ONCE = 3
"""Bad images that are named one by one when many are found together."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClientState:
    """All that a client carries from round to round.

    ``labels`` are the clusters of its training images at the end of the last training, ``int64[n]``; stage 2 of CRR
    judges the next model by them. ``model`` is its own one, (theta ``float32[N]``, buffers ``float32[B]``), where
    methods exchange none. ``reference`` is what it received last, ``float32[N]``: at its mask equal to the server's
    ``previous``, and None exactly when that is.
    """

    history: MaskHistory
    crr: CrrState = field(default_factory=CrrState)
    labels: NDArray[np.int64] | None = None
    model: Flat | None = None
    reference: NDArray[np.float32] | None = None

    def arrays(self) -> tuple[NDArray[Any] | None, ...]:
        """Return what takes room: words of the masks, the model of its own, and the reference."""
        model = self.model or (None, None)
        return (self.history.mask.words, self.history.good.words, *model, self.reference)


@dataclass(frozen=True)
class Received:
    """A received model, whole: theta ``float32[N]``, zero where pruned, buffers ``float32[B]``; and CRR's verdict."""

    theta: NDArray[np.float32]
    buffers: NDArray[np.float32]
    recover: bool = False


@dataclass(frozen=True)
class Update:
    """What a client sends: surviving values, buffers, and the scalars of aggregation."""

    mask: Mask
    values: NDArray[np.float32]
    buffers: NDArray[np.float32]
    divergence: float
    images: int
    norm: float


class Client:
    """The work of one client. It holds data and settings; what changes from round to round is in `ClientState`."""

    def __init__(self, index: int, data: ClientData, learner: Learner) -> None:
        self.index, self.data, self.learner = index, data, learner
        self.config: RunConfig = learner.config
        c, self.method = self.config, build(self.config)
        # Images are held out only for a policy that asks the probe.
        probing = c.crr.model_copy(update={"enabled": self.method.sparsity.probes})
        self.probe = Probe(data, probing, c.loss.temperature, learner.viewing, c.run.seed, index)
        identities = len(np.unique(data.train.pids))
        self.repeats = repeats(c.data, data.name, len(data.train), identities)
        self._named: set[str] = set()

    def check(self, state: ClientState, parcel: Parcel, log: Measurements) -> tuple[ClientState, Received]:
        """Unpack the received model and judge it (CRR stage 2)."""
        theta = self.learner.receive(parcel)
        if not self.method.sparsity.recovers:
            return state, Received(theta, parcel.buffers)
        with log.time("probe"):
            value = self.probe.measure(self.learner.load(theta, parcel.buffers, state.history.mask), state.labels)
        recover, crr = decide_recovery(value, state.crr, tau2=self.config.crr.tau2)
        log.values["crr_received"] = value
        return replace(state, crr=crr), Received(theta, parcel.buffers, recover)

    def recover(self, state: ClientState, received: Received, parcel: Parcel) -> Received:
        """Fill the positions that the mask of the last good round gives back; ``state`` is the one before recovery."""
        theta = received.theta.copy()
        theta[state.history.lost.to_bool()] = parcel.packed()
        return replace(received, theta=self.learner.spill.keep(theta))

    def train(
        self, state: ClientState, received: Received, round: int, log: Measurements, room: Room | None = None
    ) -> tuple[ClientState, Update]:
        """Train, measure what was learned, prune, and pack the update, in ``room`` if its values are to lie there."""
        policy, site = self.method.sparsity, self._site(state, received, round, log)
        held = state.history.mask.to_bool()
        theta, kept = policy.begin(site, received.theta, received.buffers, held)
        mask = state.history.mask if kept is held else Mask.from_bool(kept)
        trained, early, state = self._train(state, received, theta, kept, mask, site)
        if not all(np.isfinite(part).all() for part in trained):
            message = f"the model that was trained in round {round} is not finite; lower local.lr"
            raise TrainingError(message)
        with log.time("probe"):
            divergence = self._divergence()
        kept = policy.finish(self._site(state, received, round, log), *trained, kept, early)
        with log.time("encode"):
            mask = Mask.from_bool(kept)
            values = _packed(trained[0], mask, room)
        norm = float(np.linalg.norm(values.astype(np.float64)))
        log.values |= {"kl_divergence": divergence, "norm": norm, "density": density(kept, self.learner.prunable)}
        return state, Update(mask, values, trained[1], divergence, len(self.data.train) * self.repeats, norm)

    def _site(self, state: ClientState, received: Received, round: int, log: Measurements) -> Site:
        """Return what a sparsity policy may look at now."""
        measure = partial(self._measure, state.labels, log)
        learner = self.learner
        return Site(round, received.recover, learner.prunable, measure, lambda: learner.initial()[0], log)

    def _measure(
        self,
        labels: NDArray[np.int64] | None,
        log: Measurements,
        theta: NDArray[np.float32],
        buffers: NDArray[np.float32],
    ) -> float:
        with log.time("probe"):
            return self.probe.measure(self.learner.load(theta, buffers), labels)

    def _train(
        self,
        state: ClientState,
        received: Received,
        theta: NDArray[np.float32],
        kept: NDArray[np.bool_],
        mask: Mask,
        site: Site,
    ) -> tuple[Flat, NDArray[np.bool_] | None, ClientState]:
        """Train ``theta`` behind ``kept``, which is ``mask`` as bools.

        Return the trained model and what the policy says of it after the first local epoch.
        """
        learner, policy, early = self.learner, self.method.sparsity, None
        model = learner.load(theta, received.buffers, mask)
        teacher = learner.load_teacher(received.theta, received.buffers, state.history.mask)

        def look(epoch: int) -> None:
            nonlocal early
            if epoch == 0:
                early = policy.early(site, learner.read(mask)[0], kept)

        watch = look if policy.watches else None
        with site.log.time("train"):
            keep = learner.keep(kept)
            task = self._task(site.round)
            report = train_local(model, teacher, keep, task, self.config, learner.viewing, after_epoch=watch)
        self._note_bad_images()
        self._note_training(report, site.log)
        return learner.read(mask), early, replace(state, labels=report.labels)

    def _task(self, round: int) -> Task:
        """Return what local training needs to know of this client."""
        last = round == self.config.federation.rounds - 1
        held_out, regulariser = self.probe.held_out, self.method.regulariser
        return Task(self.data.train, self.repeats, held_out, self.index, round, last, regulariser)

    def _note_training(self, report: TrainingReport, log: Measurements) -> None:
        data = self.data.train
        log.values["seconds_train"] -= report.seconds_cluster
        log.values |= {f"loss_{name}": value for name, value in report.losses.items()}
        log.values |= {
            "seconds_cluster": report.seconds_cluster,
            "clusters": report.clusters,
            "outliers": report.outliers,
            "batches": report.batches,
            "idle_epochs": report.idle_epochs,
            "train_images": len(data) - len(data.bad),
            "bad_images": len(data.bad) + len(self.data.query.bad) + len(self.data.gallery.bad),
        }

    def _divergence(self) -> float:
        """Return how far training moved the client, on its fixed first training images (METHOD section 3).

        FedKLPR's v_k = mean KL(P_after || P_before), or what the method's weighting measures instead; 0 where it does
        not measure. The learner holds the trained model, its teacher what was received.
        """
        weighting, viewing = self.method.weighting, self.learner.viewing
        if not weighting.measures:
            return 0.0
        index = np.arange(min(self.config.klaw.images, len(self.data.train)))
        after, read = embed(self.learner.model, self.data.train, index, viewing)
        before, _ = embed(self.learner.teacher, self.data.train, read, viewing)
        return weighting.distance(after, before) if len(read) else 0.0

    def evaluate(self, theta: NDArray[np.float32], buffers: NDArray[np.float32]) -> RetrievalScore:
        """Return the retrieval score of a model on this client's test images."""
        model = self.learner.load(theta, buffers)
        e = self.config.evaluation
        score = evaluate(model, self.data, self.learner.viewing, ranks=e.ranks, protocol=Protocol.of(e.protocol))
        self._note_bad_images()
        return score

    def _note_bad_images(self) -> None:
        """Name the images that have turned out unreadable, each once; raise ``DataError`` when they are too many."""
        for images in (self.data.train, self.data.query, self.data.gallery):
            check_bad_share(images, self.config.data.max_bad_share)
            new = {images.pixels.name(i): i for i in sorted(images.bad) if images.pixels.name(i) not in self._named}
            self._named |= new.keys()
            for position in list(new.values())[:NAMED_AT_ONCE]:
                _log.warning("warning: client %d: %s; going on without it", self.index, _why_bad(images, position))
            if len(new) > NAMED_AT_ONCE:
                _log.warning("warning: client %d: ... and %d more", self.index, len(new) - NAMED_AT_ONCE)


def _packed(theta: NDArray[np.float32], mask: Mask, room: Room | None) -> NDArray[np.float32]:
    """Return the kept entries, ``float32[nnz]``; all of them are ``theta`` itself, unless they are wanted elsewhere."""
    if room is not None:
        return pack(theta, mask, out=room(mask.count()))
    return theta if mask.is_full else pack(theta, mask)


def _why_bad(images: ImageList, position: int) -> str:
    try:
        images.pixels.read(position)
    except DataError as error:
        return str(error)
    return f"{images.pixels.name(position)}: could not be read before"


def scores(score: RetrievalScore, prefix: str = "") -> Mapping[str, float]:
    """Return a score as named measurements."""
    ranks = {f"{prefix}rank{r}": value for r, value in score.cmc.items()}
    return {f"{prefix}map": score.mean_ap, **ranks, f"{prefix}queries_skipped": score.skipped}
