from types import SimpleNamespace

import pytest
import torch
from mpi4py import MPI

from fedmpi.comm import Ranks
from fedmpi.comm.devices import Seat, check_sharing, choose_device, node_place, seats
from fedmpi.errors import DeviceError

CLIENT, SERVER = SimpleNamespace(rank=3, hosted=(2,)), SimpleNamespace(rank=0, hosted=())


@pytest.fixture
def gpus(monkeypatch):
    def have(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return have


@pytest.mark.parametrize(
    ("wanted", "count", "place", "device"),
    [
        ("auto", 0, 0, "cpu"),
        ("cpu", 4, 1, "cpu"),
        ("auto", 4, 1, "cuda:1"),
        ("cuda", 4, 6, "cuda:2"),
        ("cuda", 1, 6, "cuda:0"),
    ],
)
def test_clients_take_the_gpus_of_a_node_in_turn(gpus, wanted, count, place, device):
    gpus(count)
    assert choose_device(wanted, CLIENT, place) == torch.device(device)


def test_a_server_without_clients_needs_no_gpu(gpus):
    gpus(0)
    assert choose_device("cuda", SERVER, 0) == torch.device("cpu")
    gpus(8)
    assert choose_device("auto", SERVER, 0) == torch.device("cpu")


def test_no_silent_fall_back(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(DeviceError, match=r"cuda, but rank 3 sees no GPU \(CUDA_VISIBLE_DEVICES: 7\)"):
        choose_device("cuda", CLIENT, 0)


def seat(rank, device, identity):
    return Seat(rank, "node", device, f"node/{identity}", (rank,))


def test_sharing_is_a_warning_or_an_error():
    apart = [seat(0, "cpu", "cpu"), seat(1, "cuda:0 X", "u0"), seat(2, "cuda:0 X", "u1"), seat(3, "cpu", "cpu")]
    assert check_sharing(apart, exclusive=True) == ""
    together = [*apart, seat(4, "cuda:1 X", "u1")]
    assert check_sharing(together, exclusive=False) == "ranks 2, 4 share one GPU"
    with pytest.raises(DeviceError, match=r"ranks 2, 4 share one GPU.*require_exclusive_gpu"):
        check_sharing(together, exclusive=True)


def test_the_table_of_a_run_without_mpirun():
    ranks = Ranks.create(MPI.COMM_SELF, 2)
    assert node_place(ranks) == (0, 1)
    (only,) = seats(ranks, torch.device("cpu"))
    assert (only.rank, only.device, only.clients) == (0, "cpu", (0, 1))
    ranks.free()
