"""Reading run files: finished, failed, or still being written; several at once.

Arrays need h5py alone; ``to_xarray`` and ``to_dataframe`` import xarray and pandas when called.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from fedmpi.errors import SchemaError
from fedmpi.record import frames, layout
from fedmpi.record.access import RUN_FILE, names, open_checked, progress
from fedmpi.record.texts import read_provenance, root_text

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, import-not-found, unused-ignore]
    import xarray as xr  # type: ignore[import-not-found, unused-ignore]


def open_run(path: str | Path) -> "Run":
    """Open a run folder (with its ``run.h5``) or a run file, also one that is being written.

    Raises SchemaError if there is none, if it is damaged, or if its schema is of a newer major version.
    """
    path = Path(path)
    return Run(path / RUN_FILE if path.is_dir() else path)


def open_runs(paths: Iterable[str | Path]) -> "list[Run]":
    """Open several runs, in the order given; raises as :func:`open_run` does, with none left open."""
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(open_run(path)) for path in paths]
        stack.pop_all()
    return runs


class Run:
    """The committed part of one run file, as it was when it was opened; open it again to see later rounds.

    Attributes
    ----------
    path : Path
        The file.
    rounds : int
        Committed rounds, the length of every array's first dimension.
    clients, layers : tuple of str
        Names, in index order; no layers where they were not recorded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_checked(path)
        with self._named("its header"):
            self.rounds, self._messages = progress(self._file)
            self.clients, self.layers = names(self._file)

    def __enter__(self) -> Self:
        """Return the run itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        self._file.close()

    def __repr__(self) -> str:
        """Return path, status, rounds and clients in one line."""
        status = self.status if self._file else "closed"
        return f"Run({str(self.path)!r}, {status}, {self.rounds} rounds, {len(self.clients)} clients)"

    @property
    def status(self) -> str:
        """``running`` (also after a kill: nobody was left to change it), ``finished``, ``stopped`` or ``failed``."""
        return root_text(self._file, "status")

    @property
    def error(self) -> str:
        """The last error in one line, empty if there was none."""
        return root_text(self._file, "error")

    @property
    def created(self) -> str:
        """When the file was created, ISO 8601 UTC."""
        return root_text(self._file, "created")

    @property
    def stopped(self) -> str:
        """When the run ended, ISO 8601 UTC; empty while it runs or after a kill."""
        return root_text(self._file, "stopped")

    @property
    def updated(self) -> float:
        """When the file was last written, seconds since 1970-01-01T00:00:00Z: tells a running run from a killed one."""
        return self.path.stat().st_mtime

    @property
    def provenance(self) -> dict[str, str | list[str]]:
        """Texts, or lists of texts, of the process that began the run."""
        return read_provenance(self._file["provenance"])

    @property
    def resumes(self) -> list[dict[str, str | list[str]]]:
        """The same of every process that resumed it, in order, with ``after_rounds``."""
        group = self._file["provenance"]
        count = sum(isinstance(item, h5py.Group) for item in group.values())
        return [read_provenance(group[f"resume_{number}"]) for number in range(1, count + 1)]

    def names(self) -> list[str]:
        """Return the full names (``clients/density``) of all variables and coordinates, ``messages/table`` included."""
        groups = [name for name in self._file if name != "provenance"]
        return [f"{group}/{name}" for group in groups for name in self._file[group]]

    def attributes(self, name: str) -> dict[str, Any]:
        """Return ``units``, ``long_name`` and, for codes, ``flag_values`` and ``flag_meanings`` of a variable."""
        wanted = ("units", "long_name", "flag_values", "flag_meanings", "_FillValue")
        attributes = self._dataset(name).attrs
        return {key: attributes[key] for key in wanted if key in attributes}

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return a variable such as ``clients/bytes_up_values``, committed rounds only.

        Floats are NaN and counts -1 where nothing was measured; names are objects of str.

        Raises
        ------
        SchemaError
            If there is no such variable, or if it is damaged (packed files carry checksums).
        """
        dataset = self._dataset(name)
        with self._named(name):
            if h5py.check_string_dtype(dataset.dtype) is not None:
                return np.asarray(dataset.asstr()[...])
            if name == layout.TABLE:
                return np.asarray(dataset[: self._messages])
            return np.asarray(dataset[: self.rounds] if dataset.maxshape[0] is None else dataset[...])

    __getitem__ = array

    def __contains__(self, name: object) -> bool:
        """Whether there is a variable of that name."""
        return name in self.names()

    @property
    def messages(self) -> npt.NDArray[np.void]:
        """The table of messages, MESSAGE_DTYPE[n], committed rounds only."""
        return self.array(layout.TABLE)

    def dims(self, name: str) -> tuple[str, ...]:
        """Return the names of a variable's dimensions."""
        dataset = self._dataset(name)
        scales = [dataset] if dataset.is_scale else [dim[0] for dim in dataset.dims if len(dim)]
        return tuple(str(scale.name).rsplit("/", 1)[-1] for scale in scales)

    def to_xarray(self, group: str = "clients") -> "xr.Dataset":
        """Return a group (``rounds``, ``clients``, ``layers``, ``baseline``) as a labelled dataset with units.

        Raises SchemaError for another group, ImportError if xarray is not installed.
        """
        return frames.dataset(self, group)

    def to_dataframe(self, group: str = "messages") -> "pd.DataFrame":
        """Return ``messages`` one row each with names for codes, or a group indexed by round, client and layer.

        Raises SchemaError for another group, ImportError if pandas is not installed.
        """
        return frames.messages(self) if group == "messages" else frames.table(self, group)

    def _dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset by full name; SchemaError with a suggestion if there is none."""
        if name not in self:
            near = difflib.get_close_matches(name, self.names(), 3, 0.5)
            raise SchemaError(
                f"{self.path}: no variable {name!r}; " + (f"did you mean {', '.join(near)}?" if near else "see names()")
            )
        return self._file[name]

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Name what is damaged."""
        try:
            yield
        except (OSError, RuntimeError, KeyError) as error:
            raise SchemaError(f"{self.path}: {what} is damaged ({error})") from error
