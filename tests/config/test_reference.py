"""The reference page: current, complete; ``fedmpi config``."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmpi.cli_config import config_group
from fedmpi.config import RunConfig, load_config, to_yaml
from fedmpi.config.reference import explain, render
from fedmpi.config.schema import all_keys
from fedmpi.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_committed_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "run: python -m fedmpi.config.reference > docs/configuration.md"
    )


def test_the_page_has_one_row_per_key_with_six_cells():
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert len(rows) == len(all_keys())
    for row in rows:
        assert row.replace("\\|", "").count("|") == 7, row


def test_rows_say_type_default_unit_and_source():
    page = render()
    assert (
        "| `poll_min_us` | whole number between 1 and 10000000 | `50` | us | "
        "Shortest sleep between two looks for a message. | fedmpi, may change on resuming |" in page
    )
    assert "| `scope` | layer \\| global | `layer` |  |" in page
    assert "| `split` | whole number between 1 and 4096, or null | `null` | clients |" in page
    assert "| `clients` | list of names | `[]` |" in page
    assert "| `root` | path or null | `null` |" in page
    assert "| `momentum` | number at least 0 and less than 1 | `0.2` | share |" in page
    assert page.count("output only |") == 10
    assert page.count("may change on resuming |") == 8


def test_python_dash_m_prints_the_page():
    command = [sys.executable, "-m", "fedmpi.config.reference"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == render()


def test_explain():
    assert explain("comm.poll_min_us").splitlines() == [
        "comm.poll_min_us = 50",
        "  Shortest sleep between two looks for a message.",
        "  type:   whole number between 1 and 10000000",
        "  unit:   us",
        "  source: fedmpi",
    ]
    assert "source: [choice]" in explain("crr.tau1")
    lines = explain("klpwa").splitlines()
    assert [line.split(" = ")[0] for line in lines[1:]] == ["klpwa.mix", "klpwa.alpha"]
    assert explain("local.augment").count("\n") == 3


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("kll.wieght", "did you mean 'kll.weight'?"),
        ("tau1", "did you mean 'crr.tau1'?"),
        ("batch_size", "did you mean 'local.batch_size' or 'evaluation.batch_size'?"),
        ("run.name.x", "did you mean 'run.name'?"),
        ("prunning", "did you mean 'pruning'?"),
    ],
)
def test_explain_an_unknown_key(word, hint):
    with pytest.raises(ConfigError, match="unknown key") as caught:
        explain(word)
    assert hint in str(caught.value)


# --- fedmpi config ---------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(config_group, arguments)


def test_show_prints_what_loads_back(tmp_path):
    done = run("show", "fedklpr", "--set", "run.seed=7", "--set", "kll.weight=1e-1")
    assert done.exit_code == 0
    file = tmp_path / "shown.yaml"
    file.write_text(done.stdout)
    config = load_config(file)
    assert (config.run.seed, config.kll.weight) == (7, 0.1)
    assert done.stdout == f"# digest: {config.digest()}\n{to_yaml(config)}"


def test_show_without_a_name_is_the_quickstart():
    assert run("show").stdout == run("show", "quickstart").stdout
    assert "name: quickstart" in run("show").stdout


def test_warnings_go_to_stderr(capsys):
    config_group(["show", "--set", "crr.probe=test"], standalone_mode=False)
    written = capsys.readouterr()
    assert "note: crr.probe = test" in written.err
    assert "note:" not in written.out


def test_check_names_the_good_and_all_mistakes_of_the_bad(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("crr: {tau1: x}\n")
    Path("b.yaml").write_text("kll: {weight: -1, a: 1}\n")
    done = run("check", "a.yaml", "fedklpr", "b.yaml", "c.yaml")
    assert done.stdout == f"ok: fedklpr (digest {RunConfig().digest()[:12]})\n"
    assert isinstance(done.exception, ConfigError)
    starts = [line.split(": ")[0] for line in str(done.exception).splitlines()]
    assert starts == ["a.yaml:1:13", "b.yaml:1:15", "b.yaml:1:19", "c.yaml"]


def test_explain_command():
    assert run("explain", "crr.tau1").stdout == explain("crr.tau1") + "\n"
    assert isinstance(run("explain", "crr.tau9").exception, ConfigError)


def test_neither_config_nor_its_commands_import_anything_heavy():
    code = (
        "import sys, fedmpi.cli_config\n"
        "assert 'pydantic' not in sys.modules, 'fedmpi --help would pay for pydantic'\n"
        "import fedmpi.config, fedmpi.config.reference\n"
        "heavy = {'torch', 'mpi4py', 'numpy', 'h5py', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
