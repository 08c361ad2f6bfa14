from types import SimpleNamespace

import pytest
import torch
from mpi4py import MPI

from fedmpi.comm import device_memory
from fedmpi.comm.device_memory import arrives, plan_arrival, takes_device_memory, vector
from fedmpi.errors import DeviceError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees no CUDA device here")


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


def test_a_message_to_oneself_arrives_in_a_tensor():
    assert arrives(CPU)


@needs_gpu
@pytest.mark.skipif(not takes_device_memory(), reason="needs an MPI library that takes GPU memory")
def test_a_message_to_oneself_arrives_on_a_gpu():
    assert arrives(GPU)


@pytest.mark.parametrize("fate", ["nothing comes", "an error"])
def test_what_does_not_arrive_is_seen(monkeypatch, fate):
    class Nothing:
        Exception = MPI.Exception
        BYTE = MPI.BYTE

        class COMM_SELF:
            @staticmethod
            def Irecv(*_):
                return SimpleNamespace(Wait=lambda: None)

            @staticmethod
            def Send(*_):
                if fate == "an error":
                    raise MPI.Exception(MPI.ERR_BUFFER)

    monkeypatch.setattr(device_memory, "MPI", Nothing)
    assert not arrives(CPU)


def answers(monkeypatch, *, takes, arrived=True):
    monkeypatch.setattr(device_memory, "takes_device_memory", lambda: takes)
    monkeypatch.setattr(device_memory, "arrives", lambda _: arrived)


@pytest.mark.parametrize(
    ("device", "hosted", "wanted", "takes", "expected"),
    [
        (GPU, (0,), True, True, True),
        (GPU, (0,), False, True, False),  # switched off
        (GPU, (0,), True, False, False),
        (GPU, (0,), True, None, False),  # the library does not say
        (GPU, (0, 1), True, True, False),  # the models of several clients would all lie there
        (CPU, (0,), True, True, False),
        (CPU, (), True, True, False),  # the server
    ],
)
def test_models_arrive_on_a_gpu_where_all_that_is_needed_is_there(monkeypatch, device, hosted, wanted, takes, expected):
    answers(monkeypatch, takes=takes)
    made = plan_arrival(SimpleNamespace(rank=3, hosted=hosted), device, wanted=wanted)
    assert (made is not None) == expected


def test_a_library_that_promises_too_much_is_one_line(monkeypatch):
    answers(monkeypatch, takes=True, arrived=False)
    with pytest.raises(DeviceError, match=r"cuda:0 of rank 3 did not arrive there; set compute.direct=false"):
        plan_arrival(SimpleNamespace(rank=3, hosted=(2,)), GPU, wanted=True)


def test_room_is_a_vector_of_float32():
    made = vector(CPU, 5)
    assert (made.shape, made.dtype, made.device) == ((5,), torch.float32, CPU)
