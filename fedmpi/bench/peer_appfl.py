"""The exchange in APPFL over MPI: ``mpirun -n 9 python peer_appfl.py PARAMETERS CLIENTS ROUNDS``, seconds per round.

A script for an environment of its own: it imports nothing of fedmpi. Clients return what they get. APPFL's default
``optimize_memory`` collects garbage several times a message, which is most of its time; it is off, in APPFL's favour.
A fourth argument, ``frugal``, leaves it on. Written for APPFL 1.12.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from appfl.agent import ServerAgent
from appfl.comm.mpi import MPIClientCommunicator, MPIServerCommunicator
from appfl.config import ServerAgentConfig
from mpi4py import MPI
from omegaconf import OmegaConf

MODEL = """import torch
class Vector(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size))
"""


def serve(size: int, clients: int, rounds: int, frugal: bool) -> None:  # noqa: FBT001
    """Be APPFL's server: synchronous, unweighted mean."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.py"
        path.write_text(MODEL)
        model = {"model_path": str(path), "model_name": "Vector", "model_kwargs": {"size": size}}
        settings = OmegaConf.create(
            {
                "client_configs": {"train_configs": {}, "model_configs": model},
                "server_configs": {
                    "num_clients": clients,
                    "scheduler": "SyncScheduler",
                    "scheduler_kwargs": {
                        "num_clients": clients,
                        "same_init_model": True,
                        "optimize_memory": frugal,
                    },
                    "aggregator": "FedAvgAggregator",
                    "aggregator_kwargs": {"client_weights_mode": "equal", "optimize_memory": frugal},
                    "num_global_epochs": rounds,
                    "device": "cpu",
                    "optimize_memory": frugal,
                    "logging_output_dirname": folder,
                    "logging_output_filename": "log",
                },
            }
        )
        config = ServerAgentConfig(client_configs=settings.client_configs, server_configs=settings.server_configs)
        MPIServerCommunicator(MPI.COMM_WORLD, ServerAgent(config), optimize_memory=frugal).serve()


def take_part(rounds: int, frugal: bool) -> list[float]:  # noqa: FBT001
    """Be a client; return the seconds of each round, from its update sent to the new global model received."""
    name = f"client-{MPI.COMM_WORLD.rank}"
    client = MPIClientCommunicator(MPI.COMM_WORLD, 0, client_id=name, optimize_memory=frugal)
    client.get_configuration()
    received = client.get_global_model(init_model=True)
    model, times = received[0] if isinstance(received, tuple) else received, []
    for _ in range(rounds):
        start = time.perf_counter()
        model, _ = client.update_global_model(model)
        times.append(time.perf_counter() - start)
    client.invoke_custom_action(action="close_connection")
    return times


def main(size: int, clients: int, rounds: int, *, frugal: bool) -> None:
    """Run all rounds; the first client prints one line of JSON."""
    torch.set_num_threads(1)
    if MPI.COMM_WORLD.rank == 0:
        serve(size, clients, rounds, frugal)
        return
    times = take_part(rounds, frugal)
    if MPI.COMM_WORLD.rank == 1:
        sys.stdout.write(f"seconds: {json.dumps(times)}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), frugal="frugal" in sys.argv[4:])
