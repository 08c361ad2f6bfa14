"""Small runs of every bench; what is asserted are bytes, never times."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fedmpi.bench import device
from fedmpi.cli import cli
from fedmpi.errors import DeviceError
from tests import mpi

KEYS = ["bench", "name", "density", "plan", "coding", "seconds", "bytes", "ratio_to_dense"]
SIZE = 20_000


def run(tmp_path, *words):
    path = tmp_path / "out.json"
    done = CliRunner().invoke(cli, ["bench", *words, "--size", str(SIZE), "--repeats", "2", "--json", str(path)])
    assert done.exit_code == 0, done.output
    return checked(json.loads(path.read_text()), words[0]), done.output.splitlines()


def checked(records, bench):
    assert records
    for record in records:
        assert list(record) == KEYS
        assert record["bench"] == bench
        assert 0 < record["density"] <= 1
        assert record["seconds"] is None or record["seconds"] >= 0
        assert record["bytes"] is None or record["bytes"] >= 0
    return records


def test_kernels(tmp_path):
    records, lines = run(tmp_path, "kernels", "--densities", "0.25,1")
    assert {r["plan"] for r in records} >= {"memcpy", "dense torch", "torch", "numpy"}
    assert len(lines) == 3 + len(records)
    for r in records:
        values = r["bytes"] / 4 / (8 if r["name"] == "merge" else 1)
        assert abs(values - SIZE * r["density"]) < 500
    assert {r["ratio_to_dense"] for r in records if r["plan"] in {"memcpy", "dense torch"}} == {1.0}


def test_codec(tmp_path):
    records, lines = run(tmp_path, "codec", "--densities", "0.1,0.5,1")
    raw = [r for r in records if r["coding"] == "raw"]
    alone = {(r["coding"], round(r["density"], 1)): r["bytes"] for r in records
             if r["name"] == "values alone" and r["plan"] == "write"}  # fmt: skip
    for density in (0.1, 0.5, 1.0):
        least, whole = alone["lossless_delta", density], alone["raw_f32", density]
        assert 0.3 * whole < least < alone["lossless", density] < 0.95 * whole
        assert alone["bf16", density] == alone["fp16", density] == whole // 2
    table = {(r["name"], round(r["density"], 1), r["plan"]): r for r in raw}
    assert len(lines) == 3 + len(records) / 3
    for (name, _, plan), r in table.items():
        bound = table[name, round(r["density"], 1), "bound"]["bytes"]
        assert r["ratio_to_dense"] == r["bytes"] / (4 * SIZE)
        if plan == "write" and name != "update, mask known":
            assert bound - 1 <= r["bytes"] <= 1.02 * bound + 128 + 20
    known = table["update, mask known", 0.1, "write"]
    assert known["bytes"] == 128 + 4 * round(known["density"] * SIZE)
    nnz, size = round(known["density"] * SIZE), SIZE  # the entropy, written down once more
    entropy = (math.lgamma(size + 1) - math.lgamma(nnz + 1) - math.lgamma(size - nnz + 1)) / math.log(2) / 8
    assert abs(table["update, mask sent", 0.1, "bound"]["bytes"] - 4 * nnz - entropy) < 2


def test_device(tmp_path):
    records, lines = run(tmp_path, "device", "--device", "cpu", "--densities", "0.25,1")
    ways = {(r["name"], r["plan"]) for r in records}
    assert ways == {
        ("copy", "device"), ("pack", "device"), ("expand", "device"), ("to device", "whole"), ("to device", "staged"),
        ("to host", "whole"), ("to host", "staged"), ("from a message", "staged"), ("from a message", "direct"),
    }  # fmt: skip
    assert len(records) == 2 * len(ways) == len(lines) - 3
    for r in records:
        whole = r["plan"] == "whole" or r["name"] == "copy"
        assert r["density"] == 1 or not whole
        assert abs(r["bytes"] - 4 * SIZE * r["density"]) < 4 * 500
    assert {r["ratio_to_dense"] for r in records if r["plan"] == "whole" or r["name"] == "copy"} == {1.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_device(tmp_path):
    done = CliRunner().invoke(cli, ["bench", "device", "--size", "100"])
    assert isinstance(done.exception, DeviceError)
    assert "sees no GPU; --device cpu" in str(done.exception)


def test_every_way_to_a_device_brings_the_same_model():
    case = device.Case(torch.device("cpu"), SIZE, 0.25)
    ways = case.variants()
    kept = case.mask.to_bool()
    assert torch.equal(ways["expand/device"]().bool(), torch.from_numpy(kept))
    assert torch.equal(ways["expand/device"](), case._theta)
    assert torch.equal(ways["pack/device"](), case._theta[kept])
    assert ways["to host/staged"]().tobytes() == ways["to host/whole"]().numpy().tobytes()
    assert ways["from a message/direct"]().tobytes() == ways["from a message/staged"]().numpy().tobytes()
    assert {ways["to device/staged"]().numpy().tobytes() for _ in range(2)} == {
        ways["to device/whole"]().numpy().tobytes() for _ in range(2)
    }


@pytest.mark.mpi
@mpi.needs_mpirun
def test_exchange(tmp_path):
    path = tmp_path / "out.json"
    words = [
        "bench",
        "exchange",
        "--size",
        SIZE,
        "--densities",
        "0.2,1",
        "--repeats",
        2,
        "--segment-mb",
        0.01,
        "--values",
        "raw",
        "--values",
        "lossless",
    ]
    done = mpi.succeed(3, ["-m", "fedmpi", *words, "--json", path], timeout=120)
    records = checked(json.loads(path.read_text()), "exchange")
    phases = {(r["name"], f"{r['plan']}, {r['coding']}", r["density"]): r for r in records
              if r["name"] in {"down", "up", "exchange"}}  # fmt: skip
    dense = 2 * 4 * SIZE
    for (name, plan, density), r in phases.items():
        if plan.startswith("shared memory") or (plan.startswith("sharded") and name == "down"):
            assert r["bytes"] == phases[name, "messages, raw", density]["bytes"]
        elif plan.startswith("sharded"):
            assert r["bytes"] > 0
        elif not plan.startswith("messages"):
            assert r["bytes"] == dense * (2 if name == "exchange" else 1)
        elif name == "down" and r["coding"] == "raw":
            assert abs(r["bytes"] - dense * density - 2 * 128) < 4 * 1000
        if name == "exchange":
            assert r["bytes"] == phases["down", plan, density]["bytes"] + phases["up", plan, density]["bytes"]
        if r["coding"] == "lossless" and name != "down":
            assert r["bytes"] < 0.9 * phases[name, "messages, raw", density]["bytes"]
    for name in ("down", "up"):
        ratios = [
            r["ratio_to_dense"]
            for (n, plan, _), r in phases.items()
            if n == name and not plan.startswith(("messages", "shared", "sharded"))
        ]
        assert min(ratios) == 1.0  # the fastest dense plan, over itself
    memory = [r for r in records if r["name"] == "server memory"]
    assert len(memory) == len(phases) / 3
    assert len(done.out.splitlines()) == 3 + len(records)


@pytest.mark.mpi
@mpi.needs_mpirun
def test_scale(tmp_path):
    path = tmp_path / "out.json"
    words = ["bench", "scale", "--size", SIZE, "--densities", "0.5", "--repeats", 1, "--json", path]
    done = mpi.succeed(9, ["-m", "fedmpi", *words], timeout=200)
    records = checked(json.loads(path.read_text()), "scale")
    plans = ["dense, whole vectors", "messages", "sharded", "shared memory"]
    assert [(r["name"], r["plan"]) for r in records] == [(n, p) for p in plans for n in ("server CPU", "wall")]
    assert {r["bytes"] for r in records} == {8}
    assert done.out.splitlines()[2].split() == ["uplink", "plan", "density", "8", "clients"]


@pytest.mark.mpi
@mpi.needs_mpirun
def test_scale_with_too_few_ranks_says_what_to_do():
    done = mpi.run(1, ["-m", "fedmpi", "bench", "scale"], timeout=60)
    assert done.code == 2, str(done)
    assert done.lines() == [
        "fedmpi: error: costs against the number of clients need 9 ranks or more: mpirun -n 65 fedmpi bench scale"
    ]


@pytest.mark.mpi
@mpi.needs_mpirun
def test_exchange_alone_says_what_to_do():
    done = mpi.run(1, ["-m", "fedmpi", "bench", "exchange"], timeout=60)
    assert done.code == 2, str(done)
    assert done.lines() == ["fedmpi: error: an exchange needs a server and a client: mpirun -n 9 fedmpi bench exchange"]


@pytest.mark.parametrize("densities", ["0", "1.5", "a", "0.1,,0.2", "nan", ""])
def test_wrong_densities(densities):
    done = CliRunner().invoke(cli, ["bench", "codec", "--densities", densities])
    assert done.exit_code == 2
    assert "above 0 and at most 1" in done.output


def test_a_wrong_mean_is_found():
    from fedmpi.bench.sparse import Sparse
    from fedmpi.comm import Ranks
    from fedmpi.errors import WireError

    mpi4py = pytest.importorskip("mpi4py.MPI")
    from fedmpi.bench.cases import Model
    from fedmpi.bench.field import Field

    ranks = Ranks.create(mpi4py.COMM_SELF, 1)
    field = Field(ranks, Model.vector(1000).layout, 4096)
    way = Sparse(field, 0.5)
    field.__dict__["theta"] = np.zeros(1000, np.float32)
    with pytest.raises(WireError, match=r"the mean of messages, raw, at density 0\.5 is wrong in \d+ entries"):
        way.check()
    ranks.free()
