"""Loading: exact error lines, YAML traps, bases, shipped descriptions, ``--set``."""

from pathlib import Path

import pytest

from fedmpi.config import RunConfig, builtin_config_dir, builtin_names, load_config
from fedmpi.config.training import FederationConfig
from fedmpi.errors import ConfigError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into an empty working directory, so that messages name them without a folder."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="run.yaml"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            file.write_bytes(text)
        else:
            file.write_text(text, encoding="utf-8")
        return name

    return write


def mistakes(path, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


# --- errors of a file ------------------------------------------------------------------------------------------------


def test_all_mistakes_at_once_with_place_and_hint(write):
    bad = write(
        "run:\n"
        "  seed: -1\n"
        "federation:\n"
        "  roundz: 3\n"
        "local:\n"
        "  epochs: 2.5\n"
        "  augment: {flip: 1.5, pda: 3}\n"
        "  lr: fast\n"
        "crr:\n"
        "  probe:   psuedo\n"
        "  enabled: maybe\n"
        "evaluation:\n"
        "  ranks: [1, five]\n"
        "prunning:\n"
        "  step: 0.1\n",
        "bad.yaml",
    )
    assert mistakes(bad, ["crr.tau1=abc", "pruning.step=1.5"]) == [
        "bad.yaml:2:9: run.seed: must be between 0 and 9223372036854775807, got -1",
        "bad.yaml:4:3: federation.roundz: unknown key; did you mean 'rounds'? (valid: "
        + ", ".join(FederationConfig.model_fields)
        + ")",
        "bad.yaml:6:11: local.epochs: must be a whole number, got 2.5",
        "bad.yaml:7:19: local.augment.flip: must be between 0 and 1, got 1.5",
        "bad.yaml:7:24: local.augment.pda: unknown key; did you mean 'pad'? (valid: flip, pad, erase)",
        "bad.yaml:8:7: local.lr: must be a number, got 'fast'",
        "bad.yaml:10:12: crr.probe: must be one of pseudo, loss, test, got 'psuedo'; did you mean 'pseudo'?",
        "bad.yaml:11:12: crr.enabled: must be true or false, got 'maybe'",
        "bad.yaml:13:14: evaluation.ranks.1: must be a whole number, got 'five'",
        "bad.yaml:14:1: prunning: unknown section; did you mean 'pruning'? (valid: "
        + ", ".join(RunConfig.model_fields)
        + ")",
        "--set pruning.step=1.5: must be greater than 0 and less than 1, got 1.5",
        "--set crr.tau1=abc: must be a number, got 'abc'",
    ]


def test_a_key_in_the_wrong_section_is_pointed_to_its_own(write):
    file = write("local:\n  rounds: 3\nrounds: 4\n")
    first, second = mistakes(file)
    assert first.startswith("run.yaml:2:3: local.rounds: unknown key; did you mean 'federation.rounds'?")
    assert second.startswith("run.yaml:3:1: rounds: unknown section; did you mean 'federation.rounds'?")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "local:\n  batch_size: 30\n",
            "run.yaml:2:15: local.batch_size: must be a multiple of local.images_per_proxy = 4, got 30",
        ),
        (
            "local: {images_per_proxy: 5}\n",
            "run.yaml:1:8: local.batch_size: must be a multiple of local.images_per_proxy = 5, got 32",
        ),
        (
            "local:\n  last_round_decay_epochs: [40, 20]\n",
            "run.yaml:2:28: local.last_round_decay_epochs: must increase, got [40, 20]",
        ),
        (
            "local:\n  last_round_decay_epochs: [0, 20]\n",
            "run.yaml:2:28: local.last_round_decay_epochs: must all be at least 1, got [0, 20]",
        ),
        ("clustering: {k1: 5}\n", "run.yaml:1:13: clustering.k2: must be at most clustering.k1 = 5, got 6"),
        (
            "compute: {device: cpu, precision: bf16}\n",
            "run.yaml:1:35: compute.precision: bf16 needs a GPU, but compute.device is cpu",
        ),
        (
            "comm: {poll_min_us: 100, poll_max_us: 50}\n",
            "run.yaml:1:39: comm.poll_max_us: must be at least comm.poll_min_us = 100, got 50",
        ),
        (
            "evaluation: {ranks: [5, 10]}\n",
            "run.yaml:1:21: evaluation.ranks: must increase and start with 1, got [5, 10]",
        ),
        (
            "data: {split: 3}\n",
            "run.yaml:1:15: data.split: needs data.root, the folder to split, or one embedded client in data.clients",
        ),
        (
            "data: {root: x, clients: [a, b], split: 3}\n",
            "run.yaml:1:41: data.split: splits one folder, but data.clients names 2",
        ),
        ("data: {root: x, clients: [a, a]}\n", "run.yaml:1:26: data.clients: names 'a' 2 times"),
        (
            "data: {root: x, clients: [../a]}\n",
            "run.yaml:1:26: data.clients: must be folder names below data.root, got '../a'",
        ),
        (
            "data: {root: x, clients: [viper, prid], ide: {vipr: 10}}\n",
            "run.yaml:1:46: data.ide: names 'vipr', which is not in data.clients (valid: viper, prid)",
        ),
        (
            "data: {ide: {viper: 1.5}}\n",
            "run.yaml:1:13: data.ide: repetitions of 'viper' must be a whole number of at least 1, got 1.5",
        ),
        (
            "data: {ide: sometimes}\n",
            "run.yaml:1:13: data.ide: must be off, auto or a mapping such as {viper: 10, ilids: 5}, got 'sometimes'",
        ),
        (
            "run: {name: ../x}\n",
            (
                "run.yaml:1:13: run.name: "
                "must be 1 to 64 of letters, digits, '.', '_', '-' without a leading '.' or '-', got '../x'"
            ),
        ),
        (
            "loss: {intra: 0, inter: 0}\n",
            "run.yaml:1:25: loss.inter: and loss.intra are both 0: nothing would be learned",
        ),
        ("loss: {temperature: .inf}\n", "run.yaml:1:21: loss.temperature: must be a finite number, got inf"),
        ("local: {epochs: true}\n", "run.yaml:1:17: local.epochs: must be a whole number, got true"),
        ("local: {epochs: null}\n", "run.yaml:1:17: local.epochs: must be a whole number, got null"),
        ('local: {epochs: "3"}\n', "run.yaml:1:17: local.epochs: must be a whole number, got '3'"),
        ("local: {lr: true}\n", "run.yaml:1:13: local.lr: must be a number, got true"),
        ("sas: {enabled: 1}\n", "run.yaml:1:16: sas.enabled: must be true or false, got 1"),
        ("data: {clients: Duke}\n", "run.yaml:1:17: data.clients: must be a list, such as [Duke], got 'Duke'"),
        ("data: {split: 0}\n", "run.yaml:1:15: data.split: must be between 1 and 4096, got 0"),
        ("data: {root: [a]}\n", "run.yaml:1:14: data.root: must be a path or null, got ['a']"),
        ("crr: 5\n", "run.yaml:1:6: crr: must be a mapping of keys, got 5"),
        ("crr: {tau1: {a: 1}}\n", "run.yaml:1:13: crr.tau1: must be a number, got a mapping"),
    ],
)
def test_one_mistake(write, text, line):
    assert mistakes(write(text)) == [line]


def test_a_long_value_is_shortened(write):
    (line,) = mistakes(write(f"local: {{epochs: {'x' * 500}}}\n"))
    assert line.endswith("xxx...")
    assert len(line) < 130


# --- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "\n# nothing but a comment\n", "---\n", "~\n", "local:\n  # epochs: 3\n", "\ufefflocal:\n"]
)
def test_an_empty_file_or_section_means_the_defaults(write, text):
    assert load_config(write(text)) == RunConfig()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), ("+2.5e-1", 0.25), (".5", 0.5), ("5.", 5.0), ("1", 1.0), ("0.001", 1e-3)],
)
def test_numbers_that_yaml_1_1_takes_for_text(write, text, value):
    file = write(f"local: {{lr: {text}}}\n")
    assert load_config(file).local.lr == value
    assert isinstance(load_config(file).local.lr, float)
    assert load_config(write(""), [f"local.lr={text}"]).local.lr == value


def test_leading_zeros_are_not_octal_and_colons_not_base_60(write):
    assert load_config(write("run: {seed: 010}\n")).run.seed == 10
    assert mistakes(write("run: {seed: 1:30}\n")) == ["run.yaml:1:13: run.seed: must be a whole number, got '1:30'"]
    assert mistakes(write("run: {seed: 0x1F}\n")) == ["run.yaml:1:13: run.seed: must be a whole number, got '0x1F'"]


@pytest.mark.parametrize("word", ["off", "Off", "OFF", "no", "false", "'off'"])
def test_ide_off_is_the_word_off(write, word):
    assert load_config(write(f"data: {{ide: {word}}}\n")).data.ide == "off"
    assert load_config(write("data: {ide: auto}\n"), [f"data.ide={word}"]).data.ide == "off"


def test_ide_accepts_false_from_python_and_a_mapping():
    assert RunConfig.model_validate({"data": {"ide": False}}).data.ide == "off"
    config = RunConfig.model_validate({"data": {"ide": {"viper": 10, "3dpes": 4}}})
    assert config.data.ide == {"viper": 10, "3dpes": 4}


@pytest.mark.parametrize(
    ("word", "value"), [("yes", True), ("on", True), ("TRUE", True), ("no", False), ("off", False), ("false", False)]
)
def test_switches_take_the_words_of_yaml_1_1(write, word, value):
    assert load_config(write(f"kll: {{enabled: {word}}}\n")).kll.enabled is value
    assert load_config(write(""), [f"kll.enabled={word}"]).kll.enabled is value


def test_text_stays_text(write):
    config = load_config(write("run: {name: 2024}\ndata: {root: 1e3, clients: [007, no, 3dpes, null_, 1.50]}\n"))
    assert config.run.name == "2024"
    assert config.data.root == Path("1e3")
    assert config.data.clients == ("007", "no", "3dpes", "null_", "1.50")


def test_null_is_null_for_text_too(write):
    assert load_config(write("data: {root: null}\nmodel: {weights: ~}\n")) == RunConfig()
    assert mistakes(write("run: {name: null}\n")) == ["run.yaml:1:13: run.name: must be text, got null"]


def test_home_is_expanded(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_config(write("data: {root: ~/reid}\n")).data.root == Path("/home/someone/reid")
    assert load_config(write(""), ["data.root=~/reid"]).data.root == Path("/home/someone/reid")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("local:\n  epochs: 2\n  lr: 0.1\n  epochs: 3\n", "run.yaml:4:3: local.epochs: given twice, first in line 2"),
        ("local: {epochs: 2}\ncrr: {}\nlocal: {lr: 1}\n", "run.yaml:3:1: local: given twice, first in line 1"),
        ("local:\n\tepochs: 2\n", "run.yaml:2:1: a tab cannot start a token; indent with spaces"),
        ("local: {epochs: 2\ncrr: 3\n", "run.yaml:2:4: expected ',' or '}', but got ':'"),
        ("local:\n  epochs: 2\n rounds: 3\n", "run.yaml:3:2: expected <block end>, but found '<block mapping start>'"),
        ("- 1\n- 2\n", "run.yaml: must be a mapping of sections, got [1, 2]"),
        ("hello\n", "run.yaml: must be a mapping of sections, got 'hello'"),
        ("a: 1\n---\nb: 2\n", "run.yaml:2:1: but found another document"),
        (
            "local: &a {lr: 1}\ncrr: *a\n",
            "run.yaml:2:6: aliases are not supported; write the value out or use 'base: file.yaml'",
        ),
        ("run: {seed: !!int 3}\n", "run.yaml:1:13: tags such as tag:yaml.org,2002:int are not supported"),
        (
            "run: !!python/name:os.system {}\n",
            "run.yaml:1:6: tags such as tag:yaml.org,2002:python/name:os.system are not supported",
        ),
        ("? [a]\n: 1\n", "run.yaml:1:3: keys must be single words"),
        ("a: '\x01'\n", "run.yaml: special characters are not allowed"),
    ],
)
def test_yaml_mistakes_have_a_place(write, text, line):
    assert mistakes(write(text))[0] == line


def test_duplicates_are_reported_beside_other_mistakes(write):
    lines = mistakes(write("local: {epochs: 1, epochs: 2}\ncrr: {tau1: x}\n"))
    assert lines == [
        "run.yaml:1:20: local.epochs: given twice, first in line 1",
        "run.yaml:2:13: crr.tau1: must be a number, got 'x'",
    ]


def test_what_is_no_run_description(write, tmp_path):
    assert mistakes(write(b"\x89HDF\r\n\x1a\n", "run.h5")) == [
        "run.h5: is not UTF-8 text (byte 1): not a run description"
    ]
    assert mistakes(write("#" * 1_000_001, "big.yaml")) == [
        "big.yaml: is larger than 1000000 bytes: not a run description"
    ]
    assert mistakes(write("[" * 100_000, "deep.yaml")) == ["deep.yaml: is nested too deeply"]


# --- shipped descriptions --------------------------------------------------------------------------------------------


def test_shipped_descriptions_load_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"quickstart", "fedklpr"} <= set(builtin_names())
    assert load_config().run.name == "quickstart"
    assert load_config(None) == load_config("quickstart") == load_config(Path("quickstart.yaml"))
    assert load_config() == load_config(builtin_config_dir() / "quickstart.yaml")


@pytest.mark.parametrize("name", builtin_names())
def test_every_shipped_description_is_valid_without_a_word_of_warning(name):
    assert load_config(name).warnings() == ()


def test_fedklpr_is_the_sum_of_the_defaults():
    assert load_config("fedklpr") == RunConfig()


def test_a_file_wins_over_a_shipped_name(write):
    write("run: {name: mine}\n", "quickstart.yaml")
    write("run: {name: bare}\n", "fedklpr")
    assert load_config("quickstart.yaml").run.name == "mine"
    assert load_config("quickstart").run.name == "quickstart"
    assert load_config("fedklpr").run.name == "bare"


def test_a_missing_file_is_named_with_the_nearest_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = mistakes("quikstart")
    assert line.startswith("quikstart: no such file; did you mean 'quickstart'? (shipped: ")
    (line,) = mistakes("sub/quickstart")
    assert line.startswith("sub/quickstart: no such file")
    (tmp_path / "folder").mkdir()
    (line,) = mistakes("folder")
    assert line.startswith("folder: is a folder, not a file")


# --- base ------------------------------------------------------------------------------------------------------------


def test_a_base_is_overlaid_section_by_section(write):
    write("local: {epochs: 3, lr: 0.01, augment: {flip: 0, pad: 4}}\ndata: {ide: {a: 2, b: 3}}\n", "sub/base.yaml")
    write("base: base.yaml\nlocal: {epochs: 4, augment: {pad: 5}}\n", "sub/middle.yaml")
    write("local: {lr: 0.02}\nbase: sub/middle.yaml\ndata: {ide: {c: 5}}\nevaluation: {ranks: [1]}\n", "top.yaml")
    config = load_config("top.yaml", ["local.augment.pad=6"])
    local = config.local
    assert (local.epochs, local.lr, local.augment.flip, local.augment.pad) == (4, 0.02, 0.0, 6)
    assert config.data.ide == {"c": 5}
    assert config.evaluation.ranks == (1,)


def test_a_base_may_be_a_shipped_name(write):
    config = load_config(write("base: quickstart\nrun: {name: longer}\nfederation: {rounds: 30}\n"))
    shipped = load_config("quickstart")
    assert config.model == shipped.model
    assert (config.run.name, config.federation.rounds) == ("longer", 30)


def test_mistakes_point_into_the_file_that_made_them(write):
    write("local: {epochs: x, lr: fast}\nevaluation: {ranks: [1, x, y]}\nkll: {a: 1}\n", "base.yaml")
    top = write("base: base.yaml\nlocal:\n  epochs: 0\nevaluation:\n  ranks: [z]\n", "top.yaml")
    lines = mistakes(top)
    assert lines[0] == "base.yaml:1:24: local.lr: must be a number, got 'fast'"
    assert lines[1].startswith("base.yaml:3:7: kll.a: unknown key")
    assert lines[2:] == [
        "top.yaml:3:11: local.epochs: must be between 1 and 10000, got 0",
        "top.yaml:5:11: evaluation.ranks.0: must be a whole number, got 'z'",
    ]


def test_a_section_that_is_no_mapping_is_not_hidden_by_what_is_laid_over_it(write):
    write("local: 5\n", "base.yaml")
    top = write("base: base.yaml\nlocal: {epochs: 2}\n", "top.yaml")
    assert mistakes(top, ["local.epochs=3"]) == ["base.yaml:1:8: local: must be a mapping of keys, got 5"]


def test_bases_that_fail(write):
    write("base: b.yaml\n", "a.yaml")
    write("base: a.yaml\n", "b.yaml")
    assert mistakes("a.yaml") == ["b.yaml:1:7: base: a.yaml leads back to itself"]
    write("base: self.yaml\n", "self.yaml")
    assert mistakes("self.yaml") == ["self.yaml:1:7: base: self.yaml leads back to itself"]
    lines = mistakes(write("base: nowhere.yaml\ncrr: {tau1: x}\n"))
    assert lines[0].startswith("run.yaml:1:7: base: nowhere.yaml: no such file (shipped: ")
    assert lines[1:] == ["run.yaml:2:13: crr.tau1: must be a number, got 'x'"]
    assert mistakes(write("base: [a, b]\n")) == ["run.yaml:1:7: base: must be one file name, got ['a', 'b']"]
    write("crr: {\n", "broken.yaml")
    (line,) = mistakes(write("base: broken.yaml\n"))
    assert line.startswith("broken.yaml:2:1: ")


# --- --set -----------------------------------------------------------------------------------------------------------


def test_set_types_its_values():
    config = load_config(
        None,
        [
            "federation.rounds=3",
            "crr.tau1=1e-3",
            "local.last_round_decay_epochs=[3, 5]",
            "data.ide={viper: 10}",
            "data.root=",
            "data.synthetic.identities = 0.5",
            "run.name=v1.0",
            "local.augment={flip: 0, erase: 1e-1}",
            "compute={threads: 2}",
        ],
    )
    assert config.federation.rounds == 3
    assert config.crr.tau1 == 1e-3
    assert config.local.last_round_decay_epochs == (3, 5)
    assert config.data.ide == {"viper": 10}
    assert config.data.root is None
    assert config.data.synthetic.identities == 0.5
    assert config.run.name == "v1.0"
    assert (config.local.augment.flip, config.local.augment.pad, config.local.augment.erase) == (0.0, 3, 0.1)
    assert (config.compute.threads, config.compute.device) == (2, "auto")


@pytest.mark.parametrize("text", ["/data/a: b #c", "*x", "@x", "a=b", "1e3", "%x", "no", "a, b]"])
def test_set_takes_text_literally(text):
    assert load_config(None, [f"data.root={text}"]).data.root == Path(text)


def test_the_last_set_wins_and_wins_over_the_file(write):
    file = write("local: {epochs: 7}\n")
    assert load_config(file, ["local.epochs=8"]).local.epochs == 8
    assert load_config(file, ["local.epochs=8", "local={epochs: 9}"]).local.epochs == 9


def test_a_replaced_value_leaves_no_mistake(write):
    assert load_config(write("crr: {tau1: abc}\n"), ["crr.tau1=0.5"]).crr.tau1 == 0.5


@pytest.mark.parametrize(
    ("argument", "what"),
    [
        ("crr.tau1=1.5", "must be between 0 and 1, got 1.5"),
        ("crr.tau=1", "unknown key; did you mean 'tau1'? (valid: enabled, probe, tau1, tau2, holdout, probe_images)"),
        (
            "crr={tua2: 1}",
            "crr.tua2: unknown key; did you mean 'tau2'? (valid: enabled, probe, tau1, tau2, holdout, probe_images)",
        ),
        ("crr=5", "must be a mapping of keys, got 5"),
        ("crr.tau1", "must read section.key=value"),
        ("=3", "must read section.key=value"),
        ("crr.=3", "must read section.key=value"),
        ("run.name.x=3", "run.name has no keys below it; set its whole value"),
        ("data.ide.viper=3", "data.ide has no keys below it; set its whole value"),
        ("crr.tau1=a: b", "must be one value, a list such as [1, 2] or a mapping such as {a: 1}"),
        ("crr.tau1=- 3", "must be one value, a list such as [1, 2] or a mapping such as {a: 1}"),
        ("evaluation.ranks=[1, x]", "evaluation.ranks.1: must be a whole number, got 'x'"),
        ("crr.probe=tset", "must be one of pseudo, loss, test, got 'tset'; did you mean 'test'?"),
        ("kll.enabled=2", "must be true or false, got 2"),
        ("local.batch_size=7", "must be a multiple of local.images_per_proxy = 2, got 7"),
    ],
)
def test_set_mistakes(argument, what):
    assert mistakes(None, [argument]) == [f"--set {argument}: {what}"]


def test_set_of_an_unknown_section():
    (line,) = mistakes(None, ["crrr.tau1=1"])
    assert line.startswith("--set crrr.tau1=1: crrr: unknown section; did you mean 'crr'? (valid: method, run, data, ")
    (line,) = mistakes(None, ["rounds=3"])
    assert line.startswith("--set rounds=3: unknown section; did you mean 'federation.rounds'? (valid: method, run, ")


def test_set_with_broken_yaml():
    (line,) = mistakes(None, ["evaluation.ranks=[1, 2"])
    assert line.startswith("--set evaluation.ranks=[1, 2: expected ',' or ']'")


def test_several_sets_fail_together():
    assert len(mistakes(None, ["crr.tau1=x", "nope", "kll.weight=-1", "run.seed=1.5"])) == 4
