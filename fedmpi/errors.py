"""The errors that fedmpi raises on purpose.

Each class is also a subclass of the builtin that a caller would catch who has never heard of fedmpi. The message is one
line that names the offending value and what to do about it: the command line prints it as it is, without a traceback.
"""


class FedmpiError(Exception):
    """Base of all expected errors: bad input, bad data, a failed rank; never a bug."""


class ConfigError(FedmpiError, ValueError):
    """A run description is wrong; the message has one ``file:line:column: key: what`` line per mistake."""


class DataError(FedmpiError, ValueError):
    """Images or folders are missing, unreadable or do not form a Re-ID client."""


class WireError(FedmpiError, ValueError):
    """A message does not fit the wire format, the layout, the round or the sender."""


class SchemaError(FedmpiError, ValueError):
    """A run file does not follow the schema that this version reads."""


class DeviceError(FedmpiError, RuntimeError):
    """A demanded device does not exist or is shared where it must not be."""


class LaunchError(FedmpiError, RuntimeError):
    """The world of ranks is not what was meant: singletons, too many ranks, mixed versions or configurations."""


class TrainingError(FedmpiError, RuntimeError):
    """Local training cannot go on: a loss or an update is not finite."""


class StorageError(FedmpiError, OSError):
    """A disk of the node has no room for clients' states, or does not give back what was written."""


class RankFailure(FedmpiError, RuntimeError):
    """Another rank failed; the message names stage, client, rank, host and the error there."""


class Stopped(FedmpiError, RuntimeError):
    """The run was asked to stop (signal, time limit) and can be continued; the message says how."""
