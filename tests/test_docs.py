"""What the documents say about the code, as far as a machine can check it: links, files, keys, defaults, choices."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fedmpi import __version__
from fedmpi.cli import cli
from fedmpi.config import RunConfig, load_config
from fedmpi.config.base import note
from fedmpi.config.schema import all_keys, field_at

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
METHOD = (ROOT / "docs" / "method.md").read_text()
README = (ROOT / "README.md").read_text()


def value(dotted):
    """The default of a key."""
    found = RunConfig()
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert missing == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md" and page.name not in index
    ] == []


def test_the_modules_that_method_names_exist():
    named = set(re.findall(r"`((?:comm|federated|pruning|reid|sparse)/\w*(?:\.py)?)`", METHOD))
    assert len(named) > 15
    assert [name for name in named if not (ROOT / "fedmpi" / name).exists()] == []


@pytest.mark.parametrize(
    "page", [README, METHOD, (ROOT / "CONTRIBUTING.md").read_text()], ids=["readme", "method", "contributing"]
)
def test_keys_in_the_text_exist(page):
    sections = "|".join(RunConfig.model_fields)
    named = set(re.findall(rf"`((?:{sections})\.[a-z_0-9.]+)(?: = \w+)?`", page))
    assert named - {"run.h5"} <= set(all_keys())


def test_method_lists_every_choice_with_its_default():
    """A key whose source says [choice] stands in method.md; where it stands in a table, so does its default."""
    choices = [key for key in all_keys() if note(field_at(key.split(".")), "source").startswith("[choice]")]
    assert len(choices) > 15
    assert [key for key in choices if f"`{key}`" not in METHOD] == []
    for row in re.findall(r"^\| [^|]+ \| (`[^|]+`) \| ([^|]+) \|", METHOD, re.MULTILINE):
        keys = re.findall(r"`([\w.]+)`", row[0])
        if not set(keys) <= set(choices):
            continue
        said = [word.strip("`,") for word in row[1].split()[: len(keys)]]
        assert said == [str(value(key)) for key in keys], row


def commands():
    """The fedmpi commands in README's bash blocks, as words, without launcher and paths."""
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            for found in re.findall(r"(?:^|[ /])fedmpi ((?:train|config|data|doctor)\b[^;&#]*)", line):
                yield shlex.split(re.sub(r"\$\w+|<\w+>", "0", found))


def test_the_settings_in_the_readme_are_valid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("run: {name: mine}\n")
    found = list(commands())
    assert len(found) >= 7
    for words in found:
        if words[0] == "train":
            name = words[1] if len(words) > 1 and not words[1].startswith("-") else None
            load_config(name, [words[i + 1] for i, word in enumerate(words) if word == "--set"])
        if words[0] == "config":
            assert CliRunner().invoke(cli, words).exit_code == 0, words


def test_the_figures_blocks_are_closed():
    assert README.count("<!-- figures: filled from measured runs -->") == README.count("<!-- end of figures -->")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2508.17431"
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
