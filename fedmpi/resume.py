"""Where a run begins: anew, or after the rounds of its newest whole checkpoint."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from fedmpi import run_folder
from fedmpi.comm import Patience, Ranks, agree, same_number
from fedmpi.config import RunConfig, differences
from fedmpi.errors import ConfigError, SchemaError
from fedmpi.record import RecordError, checkpoint, open_run
from fedmpi.record.checkpoint import Checkpoint, CheckpointError
from fedmpi.record.storage import WriterLock
from fedmpi.run_folder import RunFolder

AUTO = "auto"
"""Instead of a run folder: the newest unfinished run of the same name and configuration, or a new one."""
_FRESH, _FINISHED, _UNHEARD = -1, -2, -3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where to begin.

    Attributes
    ----------
    rounds
        Rounds that are done.
    resumed, finished
        Whether the run has begun before, and whether nothing is left to do.
    folder, checkpoint
        Of a resumed run, on the server; no checkpoint where none was written yet.
    """

    rounds: int = 0
    resumed: bool = False
    finished: bool = False
    folder: RunFolder | None = None
    checkpoint: Checkpoint | None = None


def choose(ranks: Ranks, patience: Patience, config: RunConfig, out: Path | None, resume: str | None) -> Start:
    """*Collective*. Find the run to resume, on the server, and tell all ranks.

    Parameters
    ----------
    out
        Folder of the run when ``resume`` is not a run folder itself.
    resume
        A run folder, `AUTO`, or None for a new run.

    Raises
    ------
    ConfigError
        When there is no such run, or its configuration was another one.
    CheckpointError
        When checkpoints exist and all are damaged.
    """
    if resume is None:
        return Start()
    start, code = Start(), _UNHEARD
    with agree(ranks, "looking for the run to resume", patience):
        if ranks.is_server:
            start = _find(config, out, resume)
            code = _FINISHED if start.finished else start.rounds if start.resumed else _FRESH
    code = same_number(ranks, code, patience)
    return start if ranks.is_server else Start(max(code, 0), code >= 0, code == _FINISHED)


def _find(config: RunConfig, out: Path | None, resume: str) -> Start:
    if resume != AUTO:
        return _continue(run_folder.reopen(Path(resume)), config)
    for folder in run_folder.begun(config.run.name, out):
        if out is not None or _is_ours(folder, config):
            return _continue(folder, config)
    return Start()


def _is_ours(folder: RunFolder, config: RunConfig) -> bool:
    """Return whether a run is one of this configuration that waits to be finished."""
    try:
        if differences(folder.config.read_text(), config) or _is_finished(folder):
            return False
        WriterLock(folder.record).release()
    except (OSError, RecordError, yaml.YAMLError):  # not readable, or another job is at it
        return False
    return True


def _is_finished(folder: RunFolder) -> bool:
    """Return whether the last things were done: the summary is there, and the run file is closed."""
    if not folder.summary.exists():
        return False
    with open_run(folder.record) as run:
        return run.status == "finished"


def _continue(folder: RunFolder, config: RunConfig) -> Start:
    _check_same(folder.config.read_text(), config, folder.path)
    if _is_finished(folder):
        checkpoint.remove_all(folder.checkpoints)
        return Start(config.federation.rounds, resumed=True, finished=True, folder=folder)
    newest = newest_whole(folder.checkpoints)
    if newest is None:
        return Start(resumed=True, folder=folder)
    _check_same(newest.facts.get("config", ""), config, folder.checkpoints)
    if newest.facts.get("torch") != torch.__version__:
        then = newest.facts.get("torch")
        _log.warning("warning: the run began with torch %s, this is %s: bits may differ", then, torch.__version__)
    return Start(newest.rounds, resumed=True, folder=folder, checkpoint=newest)


def newest_whole(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, None where there is none; damaged ones are named in warnings.

    Raises
    ------
    CheckpointError
        When there are some and all are damaged.
    """
    found = checkpoint.found(folder)
    for path in found:
        try:
            return checkpoint.read(path)
        except CheckpointError as error:
            older = "; using the one before it" if path != found[-1] else ""
            _log.warning("warning: refused checkpoint %s%s", error, older)
    if found:
        message = f"{folder}: all {len(found)} checkpoints are damaged; start the run anew with another --out"
        raise CheckpointError(message)
    return None


def _check_same(written: str, config: RunConfig, where: Path) -> None:
    try:
        found = differences(written, config)
    except yaml.YAMLError as error:
        raise SchemaError(f"{where}: its configuration is not readable") from error
    if found:
        message = (
            f"{where} was begun with another configuration and cannot be resumed with this one: {'; '.join(found)}"
        )
        raise ConfigError(message)
