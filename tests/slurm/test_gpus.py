"""Which GPU a client gets under each of SLURM's ways to hand them out: real SLURM, fake GPUs, our choice."""

from types import SimpleNamespace

import pytest
import torch

from fedmpi.comm.devices import Seat, check_sharing, choose_device
from fedmpi.errors import DeviceError

pytestmark = pytest.mark.slow
NONE, ALL = "", "0,1,2,3"

# options of srun (5 ranks: a server and four clients), GPUs that each rank sees, physical GPU of each client per node
CASES = {
    "--nodes=1 --gpus-per-node=4": ([ALL] * 5, ["0", "1", "2", "3"]),
    "--nodes=1 --gpus=4": ([ALL] * 5, ["0", "1", "2", "3"]),
    "--nodes=1 --gres=gpu:4": ([ALL] * 5, ["0", "1", "2", "3"]),
    "--nodes=1 --gpus-per-task=1": (["0", "1", "2", "3", "4"], ["1", "2", "3", "4"]),
    "--nodes=1 --gpus-per-node=4 --gpu-bind=map_gpu:0,0,1,2,3": (["0", "0", "1", "2", "3"], ["0", "1", "2", "3"]),
    "--nodes=1 --gpus-per-node=2": (["0,1"] * 5, ["0", "1", "0", "1"]),
    "--nodes=1": ([NONE] * 5, None),
    "--nodes=2 --exclusive --distribution=plane=3 --gpus-per-node=2": (["0,1"] * 5, ["0", "1", "0", "1"]),
    "--nodes=2 --exclusive --distribution=plane=3 --gpus-per-task=1": (["0", "1", "2", "0", "1"], ["1", "2", "0", "1"]),
}


def tasks(cluster, options):
    """Return (node, visible GPUs) of every rank, as SLURM sets them."""
    line = 'echo "$SLURM_PROCID $SLURM_NODEID [${CUDA_VISIBLE_DEVICES:-}]"'
    printed = cluster.call("srun", "--immediate=60", "--ntasks=5", *options.split(), "bash", "-c", line)
    rows = [row.split() for row in sorted(printed.splitlines())]
    assert [int(rank) for rank, *_ in rows] == list(range(5))
    return [(int(node), gpus.strip("[]")) for _, node, gpus in rows]


def seats(monkeypatch, table):
    """Let every rank choose, knowing its place among the ranks with clients on its node, as MPI tells it."""
    placed = []
    for rank, (node, visible) in enumerate(table):
        gpus = visible.split(",") if visible else []
        monkeypatch.setattr(torch.cuda, "device_count", gpus.__len__)
        place = sum(1 for r in range(1, rank) if table[r][0] == node)
        device = choose_device("cuda", SimpleNamespace(rank=rank, hosted=(rank - 1,) if rank else ()), place)
        name, physical = (str(device), gpus[device.index]) if device.type == "cuda" else ("cpu", "cpu")
        placed.append(Seat(rank, f"n{node}", name, f"n{node}/{physical}", (rank - 1,) if rank else ()))
    return placed


@pytest.mark.parametrize("options", CASES)
def test_every_client_has_a_gpu_of_its_own_where_there_are_enough(cluster, monkeypatch, options):
    visible, physical = CASES[options]
    table = tasks(cluster, options)
    assert [gpus for _, gpus in table] == visible
    if physical is None:
        with pytest.raises(DeviceError, match="rank 1 sees no GPU"):
            seats(monkeypatch, table)
        return
    placed = seats(monkeypatch, table)
    assert placed[0].device == "cpu"
    assert [seat.device_id.split("/")[1] for seat in placed[1:]] == physical
    shared = len({seat.device_id for seat in placed[1:]}) < 4
    if shared:
        assert check_sharing(placed, exclusive=False)
        with pytest.raises(DeviceError, match="share one GPU"):
            check_sharing(placed, exclusive=True)
    else:
        assert check_sharing(placed, exclusive=True) == ""
