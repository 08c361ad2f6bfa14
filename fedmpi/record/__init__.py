"""The run file: what remains of a run.

One HDF5 file holds, per round, client and layer, the traffic, times, losses, weights, masks and scores of a run, every
message that moved, and where it all came from (docs/hdf5-schema.md). :class:`RunWriter` writes it on rank 0, whole for
every reader at any moment; :func:`open_run` reads it, also while the run goes on.
"""

from fedmpi.record.messages import MESSAGE_DTYPE, empty_messages, round_traffic, traffic
from fedmpi.record.provenance import collect
from fedmpi.record.reader import Run, open_run, open_runs
from fedmpi.record.schema import CrrDecision
from fedmpi.record.storage import RecordError
from fedmpi.record.writer import RunWriter

__all__ = [
    "MESSAGE_DTYPE",
    "CrrDecision",
    "RecordError",
    "Run",
    "RunWriter",
    "collect",
    "empty_messages",
    "open_run",
    "open_runs",
    "round_traffic",
    "traffic",
]
