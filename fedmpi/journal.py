"""What the server writes during a run: folder, run file, checkpoints; and what it remembers for the summary."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from fedmpi import logbook, run_folder
from fedmpi.config import RunConfig, to_yaml
from fedmpi.federated.round import RoundResult, State
from fedmpi.logbook import Totals
from fedmpi.record import RunWriter, checkpoint, open_run
from fedmpi.record.schema import variables
from fedmpi.resume import Start
from fedmpi.run_folder import RunFolder
from fedmpi.sparse import Layout

Scores = dict[str, NDArray[np.float64]]
BASELINE = ("map", "rank1", "rank5", "rank10")


@dataclass
class Journal:
    """The open books of a run, on the server; *not collective*.

    A round is committed to the run file first, its checkpoint is written afterwards: so the run file never holds fewer
    rounds than a checkpoint, and resuming cuts it back to the checkpoint's.
    """

    config: RunConfig
    folder: RunFolder
    writer: RunWriter
    names: tuple[str, ...]
    layout: Layout
    before: Scores = field(default_factory=dict)
    last: Scores = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)

    @classmethod
    def open(
        cls,
        config: RunConfig,
        names: tuple[str, ...],
        layout: Layout,
        provenance: Mapping[str, Any],
        out: Path | None,
        start: Start,
    ) -> Self:
        """Make the folder and run file of a new run, or cut those of a resumed one back to where it goes on.

        Raises
        ------
        ConfigError, RecordError, SchemaError
            When they cannot be made, are another process's, or hold fewer rounds than the checkpoint.
        """
        rounds = config.federation.rounds
        folder = start.folder or run_folder.create(config.run.name, out)
        if start.folder is None:
            run_folder.write_whole(folder.config, to_yaml(config).encode())
        if start.folder is None or (start.checkpoint is None and not folder.record.exists()):
            layers = [t.name for t in layout.tensors]
            writer = RunWriter.create(folder.record, names, layers, provenance, rounds=rounds)
            return cls(config, folder, writer, names, layout)
        writer = RunWriter.reopen(folder.record, start.rounds, provenance, rounds=rounds)
        journal = cls(config, folder, writer, names, layout)
        if start.rounds:
            with open_run(folder.record) as run:
                journal.before = {name: run[f"baseline/{name}"] for name in BASELINE}
                journal.last, journal.totals = logbook.last_scores(run), logbook.totals(run.messages)
        return journal

    def baseline(self, scores: Scores) -> None:
        """Record the scores of the untrained model."""
        self.before = scores
        self.writer.baseline({name: scores[name] for name in BASELINE})

    def commit(self, result: RoundResult) -> Totals:
        """Commit one round to the run file; return its traffic alone."""
        self.writer.commit(
            result.round,
            logbook.round_variables(result),
            logbook.client_variables(result, list(variables("clients"))),
            logbook.layer_variables(self.layout, result.masks, result.participants),
            logbook.message_table(result.messages, result.started),
        )
        self.last = result.clients
        return self.totals.add(result.messages)

    def save(self, rounds: int, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, str]) -> None:
        """Write a checkpoint after ``rounds`` rounds."""
        checkpoint.write(self.folder.checkpoints, rounds, arrays, facts, keep=self.config.checkpoint.keep)

    def save_models(self, state: State) -> None:
        """Write the global model and every client's personalized one, as safetensors."""
        server = state.server
        if server is None:
            return
        _write(self.folder.global_model, self.layout.state_dict(server.theta, server.buffers))
        for c, name in enumerate(self.names):
            own = state.clients[c].model if c in state.clients else None  # where methods exchange nothing
            theta, buffers = own or (server.theta * server.histories[c].mask.to_bool(), server.buffers)
            _write(self.folder.client_model(name), self.layout.state_dict(theta, buffers))

    def forget_checkpoints(self) -> None:
        """Remove the checkpoints of a run that is finished."""
        checkpoint.remove_all(self.folder.checkpoints)


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    run_folder.write_whole(path, safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}))
