"""A run small enough to add up by hand: 2 clients, 3 rounds, a model of 1000 parameters (800 prunable), 10 buffers.

Every message has a header of 128 bytes; models and updates carry 40 bytes of buffers, updates 24 bytes of scalars::

    after round      0            1            2          down has what was kept before, 1000 at first
    kept          900 1000     800  900     800  700
    mask bytes     50    0      40   50       0   60

    up     3842 + 4192  + 3432 + 3842  + 3392 + 3052  = 21752      dense 6 * 4192 = 25152
    down   4168 + 4168  + 3768 + 4168  + 3368 + 3768  = 23408      dense 6 * 4168 = 25008
"""

import numpy as np

from fedmpi.record import RunWriter, empty_messages

CLIENTS = ("market", "prid")
LAYERS = ("net.conv.weight", "net.bn.weight")
KEPT = np.array([[900, 1000], [800, 900], [800, 700]])
MASK = np.array([[50, 0], [40, 50], [0, 60]])
BEFORE = np.vstack([[1000, 1000], KEPT[:-1]])
DENSITY = (KEPT - 200) / 800
DECISIONS = np.array([[1, 2], [1, 1], [3, 1]])
MAP = np.array([[0.2, 0.4], [np.nan, np.nan], [0.5, 0.7]])
UNTRAINED = np.array([0.1, 0.2])
UP = np.array([[3842, 4192], [3432, 3842], [3392, 3052]])
DOWN = np.array([[4168, 4168], [3768, 4168], [3368, 3768]])
STARTED = 1.7e9

CONFIG = """\
run: {{name: {name}, seed: {seed}}}
data: {{root: null, labels: false, height: 64, width: 32}}
model: {{arch: resnet18}}
federation: {{rounds: 3}}
local: {{epochs: 1, lr: {lr}}}
kll: {{enabled: true}}
pruning: {{enabled: true, step: 0.1, target: 0.5}}
crr: {{enabled: true, probe: {probe}}}
comm: {{segment_mb: 1.0}}
"""


def provenance(name="one", seed=0, lr=0.1, probe="pseudo", **more):
    config = CONFIG.format(name=name, seed=seed, lr=lr, probe=probe)
    return {"config": config, "config_digest": "abc", "seed": str(seed), "ranks": "3", "hosts": ["n0", "n0", "n1"],
            "client_ranks": ["1", "2"], "fedmpi_version": "0.1.0", **more}  # fmt: skip


def message(round, client, direction, *, values=0, mask=0, buffers=40, scalars=0, seconds=np.nan):
    row = empty_messages(1)
    row["round"], row["client"], row["direction"] = round, client, direction.encode()
    row["header"], row["values"], row["mask"], row["buffers"], row["scalars"] = 128, values, mask, buffers, scalars
    row["bytes"] = 128 + values + mask + buffers + scalars
    row["dense_bytes"] = 128 + 4000 + buffers + scalars if direction in {"up", "down", "eval"} else 0
    row["mask_mode"] = b"subset" if mask else b"cached"
    row["seconds"] = seconds
    return row


def messages(t, *, recovery=False, evaluation=False):
    rows = [message(t, k, "down", values=4 * BEFORE[t, k], seconds=0.5) for k in range(2)]
    if recovery:
        rows += [message(t, k, "request", buffers=0) for k in range(2)]
        rows += [message(t, 1, "recover", values=400, buffers=0)]
    rows += [message(t, k, "up", values=4 * KEPT[t, k], mask=MASK[t, k], scalars=24) for k in range(2)]
    if evaluation:
        rows += [message(t, k, "eval", values=4000, seconds=0.25) for k in range(2)]
    return np.concatenate(rows)


def clients(t, shift=0.0):
    score = MAP[t] + shift
    return {
        "weight": np.array([0.25, 0.75]), "klaw": np.array([0.4, 0.6]), "praw": np.array([0.5, 0.5]),
        "density": DENSITY[t], "crr_decision": DECISIONS[t], "crr_before": np.array([0.5, 0.6]),
        "map": score, "rank1": score + 0.1, "rank5": score + 0.2, "rank10": score + 0.2,
        "global_map": score - 0.05, "global_rank1": score,
        "loss_total": np.array([3.0, 2.0]) - t, "loss_kl": np.array([0.1, 0.3]),
        "clusters": np.array([7, -1]), "outliers": np.array([3, 0]), "train_images": np.array([30, 20]),
        "seconds_train": np.array([2.0, 5.0]), "seconds_cluster": np.array([1.0, 0.5]),
    }  # fmt: skip


def scalars(t):
    return {"started": STARTED + 10 * t, "seconds": 9.0, "seconds_downlink": 0.5, "seconds_local": 6.0,
            "seconds_uplink": 1.0, "seconds_wait": 0.25, "seconds_merge": 0.25, "seconds_evaluate": 1.0,
            "bytes_control": 100}  # fmt: skip


def layers(t):
    kept = (KEPT[t] - 200)[:, None] * [1, 0] + [0, 200]
    return {"density": (kept / [800, 200]).astype(np.float32), "bytes_values": 4 * kept}


def commit(writer, t, *, shift=0.0, changes=None, **kinds):
    given = layers(t) if writer.layers else {}
    writer.commit(t, scalars(t), clients(t, shift) | (changes or {}), given, messages(t, **kinds))


def write(path, *, rounds=3, status="finished", error=None, shift=0.0, changes=None, layered=True, names=CLIENTS,
          kinds=None, **origin):  # fmt: skip
    """Write such a run; ``shift`` is added to all scores, ``changes`` replace variables of /clients in every round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = RunWriter.create(path, names, LAYERS if layered else (), provenance(**origin))
    writer.baseline(dict.fromkeys(("map", "rank1", "rank5", "rank10"), UNTRAINED))
    for t in range(rounds):
        commit(writer, t, shift=shift, changes=changes, **(kinds or {}))
    if status != "running":
        writer.close(status, error)
        return path
    return path, writer
