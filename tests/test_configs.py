"""The run descriptions in configs/: valid, what their names say, and small."""

import re
from pathlib import Path

import pytest
import yaml

from fedmpi.config import load_config, method_names

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = {"fedavg", "fedprox", "fedpav", "fedcapr", "lotteryfl", "subfedavg", "fedklpr", "local", "centralised"}
ALL = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
BEYOND = ("fedklpr-plus", "target-70")
"""Those of the study that go beyond the paper."""
ADVISED = {"ablation/probe-test.yaml", "study/strict-probe-test.yaml"}
"""Those that may come with a word of warning: they are there to show what it warns of."""


def changes(first, second) -> set[str]:
    """Return the keys in which two runs differ."""
    one, other = first.model_dump(), second.model_dump()
    flat = [
        {f"{s}.{k}": v for s, keys in run.items() if isinstance(keys, dict) for k, v in keys.items()}
        | {"method": run["method"]}
        for run in (one, other)
    ]
    return {key for key in flat[0] if flat[0][key] != flat[1][key]} - {"run.name"}


@pytest.mark.parametrize("path", ALL, ids=str)
def test_valid_and_without_a_warning(path):
    config = load_config(CONFIGS / path)
    assert bool(config.warnings()) == (str(path) in ADVISED), config.warnings()


@pytest.mark.parametrize("folder", ["paper", "ablation", "study"])
def test_runs_of_a_folder_have_the_names_of_their_files(folder):
    for path in (CONFIGS / folder).glob("*.yaml"):
        if path.stem != "base":
            assert load_config(path).run.name == path.stem


@pytest.mark.parametrize("folder", ["paper", "ablation", "study"])
def test_files_inherit_and_state_only_the_difference(folder):
    for path in (CONFIGS / folder).glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        assert "base" in content, path
        if path.stem != "base":
            assert len(content) <= 4, path


@pytest.mark.parametrize("arch", ["resnet50", "resnet34"])
def test_the_paper_s_runs_differ_in_nothing_but_the_method(arch):
    switches = {f"{name}.enabled" for name in ("kll", "klaw", "praw", "sas", "pruning", "crr")}
    base = load_config(CONFIGS / "paper" / f"fedklpr-{arch}.yaml")
    assert (base.model.arch, base.federation.rounds, base.data.height, base.data.width) == (arch, 20, 256, 128)
    assert (base.local.epochs, base.local.last_round_epochs, base.local.lr) == (5, 50, 3.5e-4)
    assert set(method_names()) >= METHODS
    for method in METHODS:
        run = load_config(CONFIGS / "paper" / f"{method}-{arch}.yaml")
        assert run.method == method
        assert changes(run, base) == (set() if method == "fedklpr" else {"method", *switches})


def ablations(folder: str, prefix: str) -> dict[str, Path]:
    """Return the ablations of one setting by their names without its prefix."""
    names = {path.stem: path for path in (CONFIGS / folder).glob(f"{prefix}*.yaml")}
    others = METHODS | {"base", "strict", *BEYOND}
    if not prefix:
        others |= {name for name in names if name.startswith("strict-")}
    return {name.removeprefix(prefix): path for name, path in names.items() if name not in others}


@pytest.mark.parametrize(
    ("folder", "prefix", "base", "least"),
    [
        ("ablation", "", "paper/fedklpr-resnet50.yaml", "no-kll no-klaw no-praw no-sas no-crr no-pruning cdw"),
        ("study", "", "study/fedklpr.yaml", "no-kll no-klaw no-sas no-crr no-pruning cdw"),
        ("study", "strict-", "study/strict.yaml", "no-praw no-crr praw-pruned praw-kept klpwa-convex"),
    ],
)
def test_an_ablation_changes_one_part(folder, prefix, base, least):
    whole, found = load_config(CONFIGS / base), ablations(folder, prefix)
    assert set(least.split()) <= set(found)
    for name, path in found.items():
        keys = changes(load_config(path), whole)
        assert keys, name
        assert len({key.split(".")[0] for key in keys}) == 1, name
        if name.startswith("no-"):
            assert keys == {f"{name[3:]}.enabled"}


def test_the_study_has_every_ablation_of_the_paper_s_in_one_setting_or_the_other():
    # the quickstart's scope is global, so that the study goes the other way
    paper = set(ablations("ablation", "")) - {"scope-global", "step-large"}
    assert paper <= set(ablations("study", "")) | set(ablations("study", "strict-")) | set(BEYOND)


def test_the_strict_setting_differs_in_pruning_and_in_what_crr_tolerates():
    strict, plain = (load_config(CONFIGS / "study" / f"{name}.yaml") for name in ("strict", "fedklpr"))
    assert {key.split(".")[0] for key in changes(strict, plain)} == {"pruning", "crr"}


def test_the_study_s_fedklpr_plus_changes_bytes_alone_and_has_an_ablation_of_its_own():
    whole, plus, more = (load_config(CONFIGS / "study" / f"{name}.yaml") for name in ("fedklpr", *BEYOND))
    assert changes(plus, whole) == {"wire.prefer"}
    assert changes(more, plus) == {"pruning.step", "pruning.target"}


def test_the_job_array_leaves_out_what_the_ablations_leave_out():
    script = (CONFIGS.parent / "jobs" / "ablation_array.sbatch").read_text()
    left_out = set(re.findall(r"(\w+)\.enabled=false", script))
    assert left_out == {path.stem.removeprefix("no-") for path in (CONFIGS / "ablation").glob("no-*.yaml")}


def test_the_study_has_every_method_and_the_same_data_for_all():
    assert {path.stem for path in (CONFIGS / "study").glob("*.yaml")} >= METHODS
    base = load_config(CONFIGS / "study" / "base.yaml")
    for path in (CONFIGS / "study").glob("*.yaml"):
        run = load_config(path)
        assert (run.data, run.local, run.federation) == (base.data, base.local, base.federation)


def test_the_keys_of_fedklpr_plus_are_explained_beside_it():
    text = (CONFIGS / "fedklpr-plus.yaml").read_text()
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for key in changes(load_config(CONFIGS / "fedklpr-plus.yaml"), load_config(CONFIGS / "fedklpr.yaml")):
        section, name = key.split(".")
        assert f"{section}." in comment
        assert name in comment
