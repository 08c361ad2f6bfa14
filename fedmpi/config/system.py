"""How the run is carried out and kept: ``run``, ``evaluation``, ``compute``, ``comm``, ``record``, ``checkpoint``."""

import re
from collections.abc import Iterator
from typing import Literal

from fedmpi.config.base import Number, OptionalNumber, Problem, Section, Switch, Text, Whole, key
from fedmpi.config.protocol import ProtocolConfig


class RunSection(Section):
    """The run as a whole."""

    name: Text = key(
        "fedklpr",
        "Name of the run; its folder is `runs/<name>-<time>`. Letters, digits, `.`, `_`, `-`; at most 64.",
        source="fedmpi",
        output_only=True,
    )
    seed: Whole = key(
        0,
        "Seed of every random draw: weights, embedded people, splits, sampling, augmentation.",
        source="fedmpi",
        ge=0,
        le=2**63 - 1,
    )
    deterministic: Switch = key(
        default=True,
        description="Use deterministic algorithms, so that a repeated run on the same machine is bit-identical. "
        "false may be faster on a GPU.",
        source="fedmpi",
    )

    def problems(self) -> Iterator[Problem]:
        """Check the name, which becomes part of a folder name."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", self.name):
            yield (
                "name",
                f"must be 1 to 64 of letters, digits, '.', '_', '-' without a leading '.' or '-', got '{self.name}'",
            )


class EvaluationConfig(Section):
    """Retrieval on the clients' query and gallery images."""

    every: Whole = key(
        1,
        "Evaluate after every this many rounds. The untrained model and the last round are always evaluated.",
        source="fedmpi",
        unit="rounds",
        ge=1,
    )
    global_model: Switch = key(
        default=True,
        description="Evaluate the global model on every client too, beside each client's personalized one.",
        source="fedmpi",
    )
    ranks: tuple[Whole, ...] = key(
        (1, 5, 10), "Ranks at which CMC is reported; increasing, with 1 first.", source="fedmpi", unit="rank"
    )
    batch_size: Whole = key(
        128, "Images per batch without gradients: evaluation, clustering, probes.", source="fedmpi", unit="images", ge=1
    )
    protocol: ProtocolConfig = ProtocolConfig()

    def problems(self) -> Iterator[Problem]:
        """Check the order; rank-1 is in every table."""
        ranks = list(self.ranks)
        if not ranks or ranks[0] != 1 or ranks != sorted(set(ranks)):
            yield "ranks", f"must increase and start with 1, got {ranks}"


class ComputeConfig(Section):
    """Devices, threads and number formats."""

    device: Literal["auto", "cpu", "cuda"] = key(
        "auto",
        "auto = a GPU where one is visible, else the CPU; cuda = a GPU or an error, never silently the CPU. "
        "The server computes on the CPU.",
        source="fedmpi",
    )
    threads: Whole = key(
        1,
        "CPU threads of the numeric libraries per client. Fixed rather than measured, because their number changes "
        "the last bits of results.",
        source="fedmpi",
        unit="threads",
        ge=1,
        le=1024,
    )
    precision: Literal["float32", "bf16", "fp16"] = key(
        "float32", "bf16, fp16 = mixed precision in the forward pass; on a GPU only.", source="fedmpi"
    )
    require_exclusive_gpu: Switch = key(
        default=False, description="Make two clients on one GPU an error, not a warning.", source="fedmpi"
    )
    staging: Switch = key(
        default=True,
        description="Between host and GPU move only the values that a mask keeps, through a pinned buffer of the size "
        "of the model; false = whole models, without it. The same results; nothing changes on the CPU.",
        source="fedmpi",
        may_change=True,
    )
    direct: Switch = key(
        default=True,
        description="Where the MPI library takes GPU memory (`fedmpi doctor` says whether) and a rank hosts one "
        "client, the values of the model arrive on its GPU without passing that buffer: raw ones that are sent as "
        "messages. "
        "false = never. The same results; nothing changes on the CPU or without `staging`.",
        source="fedmpi",
        may_change=True,
    )

    def problems(self) -> Iterator[Problem]:
        """Check that nothing asks for a GPU beside ``device: cpu``."""
        if self.device == "cpu" and self.precision != "float32":
            yield "precision", f"{self.precision} needs a GPU, but compute.device is cpu"
        if self.device == "cpu" and self.require_exclusive_gpu:
            yield "require_exclusive_gpu", "needs a GPU, but compute.device is cpu"


class CommConfig(Section):
    """Messages between the ranks."""

    segment_mb: OptionalNumber = key(
        None,
        "Size of the pieces in which a message travels and is merged, when dense. null = what fits: pieces of all "
        "clients, two of each, fill a quarter of the dense vector, whatever their number and density. The same "
        "results.",
        source="fedmpi",
        unit="MB (1e6 byte)",
        gt=0.0,
        le=2000.0,
        may_change=True,
    )
    downlink: Literal["messages", "shared", "auto"] = key(
        "messages",
        "How clients get the model. messages = every client is sent its values; shared = the ranks, all on one host, "
        "share the vector in memory and every client takes its values, which the log counts as if they had been sent; "
        "auto = shared where that is cheaper (one host, raw values, densities that sum to 1 or more), else messages. "
        "The same results and the same bytes in the log.",
        source="fedmpi",
        may_change=True,
    )
    uplink: Literal["messages", "shared", "sharded", "hierarchical", "auto"] = key(
        "messages",
        "How the updates are merged. messages = every client sends its values, and the server merges; shared = clients "
        "on the server's host lay raw values down in memory that they share with it, others send, and the log counts "
        "them alike; sharded = every rank merges a share of the parameters, of all clients, and the server gets the "
        "means (values that are coded against what it holds are sent to it all the same); hierarchical = every node "
        "merges its own clients first, and the server the nodes (coded values as before); auto = shared where all "
        "ranks are on one host that has room for a dense vector per client, else messages. "
        "The same results to the bit, but for hierarchical, whose last bits depend on which clients share a node: a "
        "resumed run keeps it.",
        source="fedmpi",
        may_change=True,
        but_not=("hierarchical",),
    )
    deadline_s: Number = key(
        7200.0,
        "Longest wait for another rank before the run fails with its name. Set it above the longest local training.",
        source="fedmpi",
        unit="s",
        gt=0.0,
        le=1e7,
        may_change=True,
    )
    poll_min_us: Whole = key(
        50,
        "Shortest sleep between two looks for a message.",
        source="fedmpi",
        unit="us",
        ge=1,
        le=10_000_000,
        may_change=True,
    )
    poll_max_us: Whole = key(
        5000,
        "Longest such sleep; waiting ranks leave their core to training ones.",
        source="fedmpi",
        unit="us",
        ge=1,
        le=10_000_000,
        may_change=True,
    )
    bad_update: Literal["error", "skip"] = key(
        "error",
        "An update whose norm is not finite or too large: error = stop; skip = merge without its client.",
        source="fedmpi",
    )
    norm_limit: Number = key(
        100.0,
        "Norm of an update, as multiple of the clients' median, above which it is bad.",
        source="fedmpi",
        unit="factor",
        gt=1.0,
        le=1e12,
    )

    def problems(self) -> Iterator[Problem]:
        """Check that the back-off grows."""
        if self.poll_max_us < self.poll_min_us:
            yield "poll_max_us", f"must be at least comm.poll_min_us = {self.poll_min_us}, got {self.poll_max_us}"


class RecordConfig(Section):
    """The run file."""

    flush_rounds: Whole = key(
        1,
        "Rounds after which the run file is committed to disk; a crash loses fewer than this many.",
        source="fedmpi",
        unit="rounds",
        ge=1,
        output_only=True,
    )
    layers: Switch = key(
        default=True, description="Record the density of every layer of every client.", source="fedmpi"
    )


class CheckpointConfig(Section):
    """Checkpoints, from which `fedmpi train --resume` continues, and stopping in time."""

    every: Whole = key(
        1,
        "Write a checkpoint after every this many rounds, after the last round and before a stop. After a crash, the "
        "rounds since the last one are computed again, to the same bits.",
        source="fedmpi",
        unit="rounds",
        ge=1,
        output_only=True,
    )
    keep: Whole = key(
        2,
        "Keep the newest this many; an older one is used when a newer one is damaged. None is kept once the run is "
        "finished.",
        source="fedmpi",
        unit="checkpoints",
        ge=1,
        le=1000,
        output_only=True,
    )
    grace_s: Number = key(
        20.0,
        "After SIGUSR1 or SIGTERM the round may go on for so long; then it is given up before the next batch. "
        "Also the time that is kept free before a time limit.",
        source="fedmpi",
        unit="s",
        ge=0.0,
        le=1e7,
        output_only=True,
    )
    wall_time_s: Number = key(
        0.0,
        "Stop, to be resumed, so that the process ends within this time; 0 = no limit. SLURM's own end time "
        "(SLURM_JOB_END_TIME) counts where it is set.",
        source="fedmpi",
        unit="s",
        ge=0.0,
        le=1e9,
        output_only=True,
    )

    def problems(self) -> Iterator[Problem]:
        """Check that there is time before the time that is kept free."""
        if 0 < self.wall_time_s <= self.grace_s:
            yield "wall_time_s", f"must be more than checkpoint.grace_s = {self.grace_s:g}, got {self.wall_time_s:g}"
