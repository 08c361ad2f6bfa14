"""One client: what it does with a received model on its own data, until there is an update to send."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedmpi.comm.scatter import Parcel
from fedmpi.config import RunConfig
from fedmpi.errors import DataError, TrainingError
from fedmpi.federated.history import MaskHistory
from fedmpi.federated.learner import Learner
from fedmpi.federated.probe import Probe
from fedmpi.pruning import CrrState, Decision, decide_pruning, decide_recovery, density, prune, pruning_due
from fedmpi.reid.datasets import ClientData, ImageList, repeats
from fedmpi.reid.evaluation import RetrievalScore
from fedmpi.reid.features import embed
from fedmpi.reid.loading import check_bad_share
from fedmpi.reid.losses import kl_divergence
from fedmpi.reid.testing import evaluate
from fedmpi.reid.training import Task, train_local
from fedmpi.sparse import Mask
from fedmpi.sparse.kernels import expand, pack

Flat = tuple[NDArray[np.float32], NDArray[np.float32]]
NAMED_AT_ONCE = 3
"""Bad images that are named one by one when many are found together."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClientState:
    """All that a client carries from round to round.

    ``labels`` are the clusters of its training images at the end of the last training, ``int64[n]``; stage 2 of CRR
    judges the next model by them.
    """

    history: MaskHistory
    crr: CrrState = field(default_factory=CrrState)
    labels: NDArray[np.int64] | None = None


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


@dataclass
class Measurements:
    """Named numbers of one client and round for the run file; a missing one is NaN there."""

    values: dict[str, float] = field(default_factory=dict)

    def time(self, name: str) -> "Stopwatch":
        """Return a context that adds its duration to ``seconds_<name>``."""
        return Stopwatch(self, f"seconds_{name}")


class Stopwatch:
    """Adds wall seconds to a measurement."""

    def __init__(self, measurements: Measurements, name: str) -> None:
        self._values, self._name = measurements.values, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._values[self._name] = self._values.get(self._name, 0.0) + time.perf_counter() - self._start


class Client:
    """The work of one client. It holds data and settings; what changes from round to round is in `ClientState`."""

    def __init__(self, index: int, data: ClientData, learner: Learner) -> None:
        self.index, self.data, self.learner = index, data, learner
        self.config: RunConfig = learner.config
        c = self.config
        self.probe = Probe(data, c.crr, c.loss.temperature, learner.viewing, c.run.seed, index)
        identities = len(np.unique(data.train.pids))
        self.repeats = repeats(c.data, data.name, len(data.train), identities)
        self._named: set[str] = set()

    def check(self, state: ClientState, parcel: Parcel, log: Measurements) -> tuple[ClientState, Received]:
        """Unpack the received model and judge it (CRR stage 2)."""
        theta = np.empty(self.learner.layout.size, np.float32)
        expand(parcel.values, state.history.mask, 0, theta.size, theta)
        if not self.config.crr.enabled:
            return state, Received(theta, parcel.buffers)
        with log.time("probe"):
            value = self.probe.measure(self.learner.load(theta, parcel.buffers), state.labels)
        recover, crr = decide_recovery(value, state.crr, tau2=self.config.crr.tau2)
        log.values["crr_received"] = value
        return replace(state, crr=crr), Received(theta, parcel.buffers, recover)

    def recover(self, state: ClientState, received: Received, parcel: Parcel) -> Received:
        """Fill the positions that the mask of the last good round gives back; ``state`` is the one before recovery."""
        given = np.empty_like(received.theta)
        expand(parcel.values, state.history.lost, 0, given.size, given)
        return replace(received, theta=received.theta + given)

    def train(
        self, state: ClientState, received: Received, round: int, log: Measurements
    ) -> tuple[ClientState, Update]:
        """Train, measure what was learned, prune, and pack the update."""
        kept = state.history.mask.to_bool()
        trained, state = self._train(state, received, kept, round, log)
        if not all(np.isfinite(part).all() for part in trained):
            message = f"the model that was trained in round {round} is not finite; lower local.lr"
            raise TrainingError(message)
        with log.time("probe"):
            divergence = self._divergence()
        kept = self._prune(trained, kept, state, round, log, recovered=received.recover)
        with log.time("encode"):
            mask = Mask.from_bool(kept)
            values = pack(trained[0], mask, 0, mask.size)
        norm = float(np.linalg.norm(values.astype(np.float64)))
        log.values |= {"kl_divergence": divergence, "norm": norm, "density": density(kept, self.learner.prunable)}
        return state, Update(mask, values, trained[1], divergence, len(self.data.train) * self.repeats, norm)

    def _train(
        self, state: ClientState, received: Received, kept: NDArray[np.bool_], round: int, log: Measurements
    ) -> tuple[Flat, ClientState]:
        learner, data = self.learner, self.data.train
        model = learner.load(received.theta, received.buffers)
        teacher = learner.load_teacher(received.theta, received.buffers)
        last = round == self.config.federation.rounds - 1
        task = Task(data, self.repeats, self.probe.held_out, self.index, round, last)
        with log.time("train"):
            report = train_local(model, teacher, learner.keep(kept), task, self.config, learner.viewing)
        self._note_bad_images()
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
        return learner.read(), replace(state, labels=report.labels)

    def _divergence(self) -> float:
        """Return v_k of KLAW: mean KL(P_after || P_before) on the fixed first training images (METHOD section 3).

        The learner holds the trained model, its teacher what was received.
        """
        klaw, viewing = self.config.klaw, self.learner.viewing
        index = np.arange(min(klaw.images, len(self.data.train)))
        after, read = embed(self.learner.model, self.data.train, index, viewing)
        before, _ = embed(self.learner.teacher, self.data.train, read, viewing)
        return float(kl_divergence(after, before, temperature=klaw.temperature)) if len(read) else 0.0

    def _prune(
        self,
        trained: Flat,
        kept: NDArray[np.bool_],
        state: ClientState,
        round: int,
        log: Measurements,
        *,
        recovered: bool,
    ) -> NDArray[np.bool_]:
        """Return the mask to send: the candidate if CRR stage 1 accepts it, else the current one."""
        c, prunable = self.config.pruning, self.learner.prunable
        due = pruning_due(
            round,
            density(kept, prunable),
            enabled=c.enabled,
            start_round=c.start_round,
            target=c.target,
            recovered=recovered,
        )
        if not due:
            log.values["crr_decision"] = self._idle_decision(density(kept, prunable), recovered=recovered)
            return kept
        with log.time("prune"):
            candidate = prune(trained[0], kept, prunable, step=c.step, target=c.target, scope=c.scope)
        accepted = self._accepts(trained, candidate, state, log)
        log.values["crr_decision"] = Decision.ACCEPTED if accepted else Decision.HALTED
        return candidate if accepted else kept

    def _idle_decision(self, density: float, *, recovered: bool) -> Decision:
        if recovered:
            return Decision.RECOVERED
        return Decision.TARGET_REACHED if self.config.pruning.enabled and density < 1 else Decision.OFF

    def _accepts(self, trained: Flat, candidate: NDArray[np.bool_], state: ClientState, log: Measurements) -> bool:
        if not self.config.crr.enabled:
            return True
        with log.time("probe"):
            before = self.probe.measure(self.learner.load(*trained), state.labels)
            after = self.probe.measure(self.learner.load(trained[0] * candidate, trained[1]), state.labels)
        log.values |= {"crr_before": before, "crr_after": after}
        return decide_pruning(before, after, tau1=self.config.crr.tau1)

    def evaluate(self, theta: NDArray[np.float32], buffers: NDArray[np.float32]) -> RetrievalScore:
        """Return the retrieval score of a model on this client's test images."""
        model = self.learner.load(theta, buffers)
        score = evaluate(model, self.data, self.learner.viewing, ranks=self.config.evaluation.ranks)
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
