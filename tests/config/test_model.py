"""The models: frozen, documented, written as YAML and read back, digest."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedmpi.config import RunConfig, load_config, to_yaml
from fedmpi.config.advice import pruning_rounds
from fedmpi.config.base import note
from fedmpi.config.schema import all_keys, field_at

# The defaults that METHOD gives, written down once more by hand: a changed default must be changed knowingly.
METHOD_DEFAULTS = {
    "data.height": 256,
    "data.width": 128,
    "data.ide": "off",
    "data.labels": False,
    "model.arch": "resnet50",
    "model.last_stride": 1,
    "model.stem_relu": True,
    "federation.rounds": 20,
    "local.epochs": 5,
    "local.last_round_epochs": 50,
    "local.batch_size": 32,
    "local.images_per_proxy": 4,
    "local.lr": 3.5e-4,
    "local.lr_late": 3.5e-5,
    "local.lr_late_round": 5,
    "local.weight_decay": 5e-4,
    "local.last_round_warmup_epochs": 5,
    "local.last_round_warmup_factor": 0.01,
    "local.last_round_decay_epochs": (20, 40),
    "local.last_round_decay": 0.1,
    "local.augment.flip": 0.5,
    "local.augment.pad": 10,
    "local.augment.erase": 0.5,
    "clustering.k1": 20,
    "clustering.k2": 6,
    "clustering.eps": 0.5,
    "clustering.min_samples": 4,
    "loss.temperature": 0.07,
    "loss.intra": 0.6,
    "loss.inter": 0.7,
    "loss.negatives": 50,
    "loss.momentum": 0.2,
    "kll.enabled": True,
    "kll.weight": 0.13,
    "kll.temperature": 1.0,
    "kll.features": "embedding",
    "kll.start_round": 1,
    "klaw.enabled": True,
    "klaw.sign": "gain",
    "klaw.images": 32,
    "praw.enabled": True,
    "praw.rule": "inverse_density",
    "klpwa.mix": "product",
    "sas.enabled": True,
    "pruning.enabled": True,
    "pruning.step": 0.05,
    "pruning.target": 0.5,
    "pruning.scope": "layer",
    "crr.enabled": True,
    "crr.probe": "pseudo",
    "crr.tau1": 0.01,
    "crr.tau2": 0.01,
    "evaluation.ranks": (1, 5, 10),
}
CHOICES = {
    "model.stem_relu",
    "kll.weight",
    "kll.temperature",
    "kll.features",
    "klaw.sign",
    "klaw.temperature",
    "praw.rule",
    "klpwa.mix",
    "klpwa.alpha",
    "pruning.step",
    "pruning.target",
    "pruning.scope",
    "pruning.start_round",
    "crr.probe",
    "crr.tau1",
    "crr.tau2",
    "crr.holdout",
    "crr.probe_images",
}


def value_at(config, dotted):
    for name in dotted.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(("dotted", "value"), METHOD_DEFAULTS.items())
def test_defaults_are_those_of_the_method(dotted, value):
    found = value_at(RunConfig(), dotted)
    assert found == value
    assert type(found) is type(value)


def test_sections_in_the_agreed_order():
    sections = "run data model federation local clustering loss kll klaw praw klpwa sas pruning crr"
    methods = "fedprox fedpav fedcapr lotteryfl subfedavg"
    others = "evaluation compute comm wire record checkpoint"
    assert list(RunConfig.model_fields) == ["method", *sections.split(), *methods.split(), *others.split()]


@pytest.mark.parametrize("dotted", all_keys())
def test_every_key_is_documented_and_its_default_valid(dotted):
    field = field_at(dotted.split("."))
    assert field is not None
    assert field.description
    assert field.description.endswith((".", ")"))
    source = note(field, "source")
    assert source in {"FedCAPR code", "FedKLPR v1", "fedmpi"} or source.startswith("[choice] ")
    *sections, name = dotted.split(".")
    content = {name: field.default}
    for section in reversed(sections):
        content = {section: content}
    assert RunConfig.model_validate(content) == RunConfig()


def test_every_choice_says_so():
    said = {dotted for dotted in all_keys() if note(field_at(dotted.split(".")), "source").startswith("[choice]")}
    assert said >= CHOICES


def test_nothing_can_be_changed():
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.local.epochs = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.local = config.local
    with pytest.raises(ValidationError, match="not permitted"):
        RunConfig(loocal=config.local)


# --- YAML and back ---------------------------------------------------------------------------------------------------


def reload(config, tmp_path):
    file = tmp_path / "resolved.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    return load_config(file)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.ide={viper: 10, 3dpes: 4, on: 2, '1': 3}", "data.clients=[viper, 3dpes, on, '1', ünï, 'a: b', '#']"],
        ["data.root=no", "run.name=1e3", "model.weights=null_", "local.lr=1e-9", "local.last_round_decay_epochs=[]"],
        ["data.root=/a b/c: d#e", "run.seed=9223372036854775807", "comm.deadline_s=1e7", "kll.enabled=off"],
    ],
)
def test_yaml_loads_back_to_an_equal_object(overrides, tmp_path):
    config = load_config("fedklpr", overrides)
    back = reload(config, tmp_path)
    assert back == config
    assert back.digest() == config.digest()
    assert to_yaml(back) == to_yaml(config)


@settings(max_examples=60, deadline=None)
@given(
    name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True),
    clients=st.lists(
        st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1), unique=True
    ),
    lr=st.floats(1e-300, 10.0),
    root=st.text(st.characters(exclude_categories=("C",)), min_size=1).filter(lambda text: not text.startswith("~")),
)
def test_yaml_round_trip_of_any_text_and_number(tmp_path_factory, name, clients, lr, root):
    clients = [client for client in clients if client not in {".", ".."}]
    content = {"run": {"name": name}, "local": {"lr": lr}, "data": {"root": root, "clients": clients}}
    config = RunConfig.model_validate(content)
    assert reload(config, tmp_path_factory.mktemp("round")) == config


def test_yaml_is_complete_and_readable_by_an_ordinary_reader():
    content = yaml.safe_load(to_yaml(load_config()))
    assert list(content) == list(RunConfig.model_fields)
    assert content["data"]["ide"] == "off"
    assert content["local"]["lr"] == 3.5e-4
    assert content["evaluation"]["ranks"] == [1, 5, 10]
    written = {f"{section}.{key}" for section, keys in content.items() for key in keys}
    assert {key for key in all_keys() if key.count(".") == 1} <= written


# --- digest ----------------------------------------------------------------------------------------------------------


def test_digest_is_the_sha256_of_the_canonical_content():
    content = yaml.safe_load(to_yaml(load_config()))
    del content["run"]["name"], content["record"]["flush_rounds"], content["checkpoint"]
    del content["data"]["cache_dir"], content["data"]["name_images"]
    del content["federation"]["state_memory_mb"], content["federation"]["state_dir"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert load_config().digest() == hashlib.sha256(text.encode()).hexdigest()


def test_digest_ignores_how_a_value_was_written(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("local: {lr: 1, epochs: 5}\ndata: {root: ./x}\n")
    second.write_text("data:\n  root: x\nlocal:\n  lr: 1.0e+0\n")
    assert load_config(first).digest() == load_config(second).digest()


OUTPUT_ONLY = {
    "run.name", "record.flush_rounds", "data.cache_dir", "data.name_images",
    "federation.state_memory_mb", "federation.state_dir",
    "checkpoint.every", "checkpoint.keep", "checkpoint.grace_s", "checkpoint.wall_time_s",
}  # fmt: skip


@pytest.mark.parametrize("dotted", all_keys())
def test_digest_changes_with_every_key_that_counts(dotted):
    changes = {
        "method": "fedavg",
        "subfedavg.tolerance": 0.1,
        "run.name": "other",
        "data.root": "x",
        "data.clients": ["x"],
        "data.split": 3,
        "data.ide": "auto",
        "model.weights": "x",
        "data.cache_dir": "x",
        "local.last_round_decay_epochs": [3],
        "local.batch_size": 64,
        "local.images_per_proxy": 2,
        "local.last_round_warmup_factor": 0.5,
        "evaluation.ranks": [1],
        "clustering.k1": 30,
        "comm.poll_max_us": 6000,
        "model.last_stride": 2,
        "checkpoint.wall_time_s": 60.0,
        "wire.bandwidth_mb_s": 100.0,
        "federation.state_memory_mb": 100.0,
        "federation.state_dir": "x",
        "comm.segment_mb": 4.0,
    }
    section, _, key = dotted.rpartition(".")
    field = field_at(dotted.split("."))
    value = changes.get(dotted)
    if value is None:
        choices = [choice for choice in getattr(field.annotation, "__args__", ()) if choice != field.default]
        if isinstance(field.default, bool):
            value = not field.default
        elif isinstance(field.default, str):
            value = choices[0]
        else:
            value = field.default + 1 if isinstance(field.default, int) else field.default * 0.9
    content = {key: value}
    for name in reversed(section.split(".") if section else []):
        content = {name: content}
    content.setdefault("data", {}).setdefault("root", "y")  # data.split needs a folder
    base = RunConfig.model_validate({"data": {"root": "y"}})
    changed = RunConfig.model_validate(content)
    assert changed != base
    assert (changed.digest() == base.digest()) is (dotted in OUTPUT_ONLY)


# --- warnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["crr.probe=test"], "crr.probe = test decides by the test labels"),
        (["kll.features=normalized"], "kll.features = normalized with kll.temperature = 1 makes"),
        (["data.labels=true"], "data.labels = true trains on the true identities"),
        (["kll.start_round=20"], "kll.start_round = 20 is never reached in 20 rounds"),
        (["pruning.start_round=10"], "pruning.target = 0.5 is not reached: at most 0.40 pruned after 20 rounds"),
        (["local.last_round_epochs=30"], "local.last_round_decay_epochs = [40]: the last round has only 30 epochs"),
        (
            ["local.last_round_warmup_epochs=50"],
            "local.last_round_warmup_epochs = 50 fills the last round of 50 local epochs",
        ),
    ],
)
def test_what_deserves_a_word(overrides, start):
    (line,) = load_config("fedklpr", overrides).warnings()
    assert line.startswith(start)


@pytest.mark.parametrize(
    "overrides",
    [
        ["crr.probe=test", "crr.enabled=false"],
        ["kll.features=normalized", "kll.temperature=0.05"],
        ["pruning.enabled=false", "pruning.start_round=20"],
    ],
)
def test_what_deserves_none(overrides):
    assert load_config("fedklpr", overrides).warnings() == ()


@pytest.mark.parametrize("step", [0.05, 0.15, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("target", [0.1, 0.3, 0.5, 0.75, 0.99])
def test_rounds_of_pruning_by_counting_them(step, target):
    alive, rounds = 1.0, 0
    while 1.0 - alive < target - 1e-9:
        alive *= 1.0 - step
        rounds += 1
    assert pruning_rounds(step, target) == rounds


def test_paths_are_paths():
    config = load_config("fedklpr", ["model.weights=w.pth"])
    assert config.model.weights == Path("w.pth")
