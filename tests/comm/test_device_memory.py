from types import SimpleNamespace

import pytest
from mpi4py import MPI

from fedmpi.comm import device_memory
from fedmpi.comm.device_memory import takes_device_memory


class Library:
    def __init__(self, answer):
        if answer is not None:
            self.MPIX_Query_cuda_support = lambda: answer


class Info(dict):
    def Get(self, name):
        return self.get(name)


def fake(info, file=MPI.__file__):
    """Return a stand-in for mpi4py's MPI."""
    return SimpleNamespace(__file__=file, COMM_WORLD=SimpleNamespace(Get_info=lambda: info))


@pytest.mark.parametrize(
    ("kinds", "function", "expected"),
    [
        ("mpi,system", 1, False),
        ("mpi,system,cuda:device,cuda:host", 0, True),
        ("system, cuda", None, True),
        ("rocm:device", None, False),
        (None, 1, True),
        (None, 0, False),
        (None, None, None),
    ],
)
def test_the_standard_key_goes_first_and_silence_is_unknown(monkeypatch, kinds, function, expected):
    info = Info({} if kinds is None else {"mpi_memory_alloc_kinds": kinds})
    monkeypatch.setattr(device_memory, "MPI", fake(info))
    monkeypatch.setattr(device_memory.ctypes, "CDLL", lambda _: Library(function))
    assert takes_device_memory() is expected


def test_a_library_that_cannot_be_opened_is_unknown(monkeypatch):
    def refuse(path):
        raise OSError(path)

    monkeypatch.setattr(device_memory, "MPI", fake(Info(), "/nowhere"))
    monkeypatch.setattr(device_memory.ctypes, "CDLL", refuse)
    assert takes_device_memory() is None


def test_the_library_that_is_loaded_here_answers():
    assert takes_device_memory() in (True, False, None)
