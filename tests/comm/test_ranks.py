from types import SimpleNamespace

import pytest

from fedmpi.comm import Ranks, check_one_world
from fedmpi.comm.ranks import place
from fedmpi.errors import LaunchError


@pytest.mark.parametrize(
    ("clients", "size", "hosts"),
    [
        (3, 1, (0, 0, 0)),
        (3, 2, (1, 1, 1)),
        (3, 3, (1, 2, 1)),
        (3, 4, (1, 2, 3)),
        (8, 5, (1, 2, 3, 4, 1, 2, 3, 4)),
    ],
)
def test_clients_go_round_robin_and_the_server_is_alone_when_it_can(clients, size, hosts):
    assert place(clients, size) == hosts


def test_too_many_ranks_say_how_many_are_right():
    with pytest.raises(LaunchError, match=r"6 ranks for 3 clients: 2 would idle; use at most mpirun -n 4"):
        Ranks.create(SimpleNamespace(size=6), 3)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"])
def test_singletons_are_noticed(name):
    with pytest.raises(LaunchError, match=rf"{name}=9, but MPI sees one rank: these are 9 separate runs.*srun --mpi="):
        check_one_world(1, {name: "9"})


@pytest.mark.parametrize(
    ("size", "environment"),
    [
        (1, {}),
        (1, {"PMI_SIZE": "1"}),
        (1, {"PMI_SIZE": ""}),
        (1, {"SLURM_NTASKS": "9"}),  # the batch script has it too, where one process is right
        (9, {"PMI_SIZE": "9"}),
    ],
)
def test_one_world_passes(size, environment):
    check_one_world(size, environment)
