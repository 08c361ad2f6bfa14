"""The exchange in Flower's simulation: ``python peer_flower.py PARAMETERS CLIENTS ROUNDS`` prints seconds per round.

A script for an environment of its own: it imports nothing of fedmpi. Clients return what they get.
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # before Flower looks

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


def train(message: Any, context: Any) -> Any:  # noqa: ANN401, ARG001 - Flower's signature
    """Return the arrays that came."""
    arrays = ArrayRecord(message.content["arrays"].to_numpy_ndarrays())
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1.0})}), reply_to=message)


def main(size: int, clients: int, rounds: int) -> None:
    """Run all rounds and print one line of JSON: seconds of each, from before the sampling to the new mean."""
    begun: list[float] = []
    ended: list[float] = []
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    configure, aggregate = strategy.configure_train, strategy.aggregate_train

    def timed_configure(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        begun.append(time.perf_counter())
        return configure(*args, **options)

    def timed_aggregate(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        result = aggregate(*args, **options)
        ended.append(time.perf_counter())
        return result

    strategy.configure_train, strategy.aggregate_train = timed_configure, timed_aggregate

    def serve(grid: Any, context: Any) -> None:  # noqa: ANN401, ARG001 - Flower's signature
        start = ArrayRecord([np.random.default_rng(0).standard_normal(size, np.float32)])
        strategy.start(grid, start, num_rounds=rounds)

    server, client = ServerApp(), ClientApp()
    server.main()(serve)
    client.train()(train)
    cores = os.cpu_count() or 1
    resources = {"client_resources": {"num_cpus": cores / clients}, "init_args": {"num_cpus": cores}}
    run_simulation(server, client, clients, backend_config=resources)
    times = [b - a for a, b in zip(begun, ended, strict=True)]
    sys.stdout.write(f"seconds: {json.dumps(times)}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
