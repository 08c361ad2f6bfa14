"""The package that others install: whole, built without a compiler, and at home in any folder."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from fedmpi import __version__
from fedmpi.config import load_config

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "fedmpi", "configs")
SECONDS = 180

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not a checkout")


def build(source, kind, target):
    """Build a distribution without network, pip or a compiler; return its path."""
    code = f"from setuptools import build_meta as b; print('built', b.build_{kind}({str(target)!r}))"
    env = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target / re.search(r"^built (\S+)$", done.stdout, re.MULTILINE)[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what a build reads, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build(source, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the source distribution: the way of one who has neither checkout nor compiler."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return build(unpacked, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The unpacked wheel: what pip puts into site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed, folder, *arguments):
    env = {k: v for k, v in os.environ.items() if not k.startswith("FEDMPI_")} | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_every_module_of_the_tree_is_in_the_wheel(installed):
    """A new room that pyproject.toml does not list would be missed here and nowhere else."""
    tree = {str(file.relative_to(ROOT)) for file in (ROOT / "fedmpi").rglob("*.py")}
    packed = {str(file.relative_to(installed)) for file in installed.rglob("*.py")}
    assert packed == tree


def test_configurations_and_type_marker_are_in_the_wheel(installed):
    shipped = {file.name: file.read_text() for file in (ROOT / "configs").glob("*.yaml")}
    packed = {file.name: file.read_text() for file in (installed / "fedmpi" / "_configs").iterdir()}
    assert "quickstart.yaml" in shipped
    assert packed == shipped
    assert (installed / "fedmpi" / "py.typed").is_file()


def test_without_a_compiler_there_is_no_extension_and_all_the_rest(installed, tmp_path):
    assert list(installed.rglob("*.so")) == []
    code = "import fedmpi; from fedmpi.sparse.kernels import active; print(fedmpi.__file__, active())"
    done = python(installed, tmp_path, "-P", "-c", code)
    assert done.stdout.split() == [str(installed / "fedmpi" / "__init__.py"), "torch"], done.stderr


def test_the_source_distribution_has_what_a_compiler_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {str(file.relative_to(ROOT)) for file in (ROOT / "fedmpi/sparse/native").iterdir() if file.suffix in ".ch"}
    assert native
    assert native | {"setup.py", "LICENSE", "README.md", "configs/quickstart.yaml"} <= names


def test_from_any_folder_the_wheel_finds_the_quickstart(installed, tmp_path):
    done = python(installed, tmp_path, "-P", "-m", "fedmpi", "config", "show")
    assert done.returncode == 0, done.stderr
    assert f"# digest: {load_config(None).digest()}" in done.stdout.splitlines()
    code = "from fedmpi.config import builtin_config_dir; print(builtin_config_dir())"
    assert python(installed, tmp_path, "-P", "-c", code).stdout.strip() == str(installed / "fedmpi" / "_configs")


def test_the_command_of_the_wheel_is_the_command_line(installed, tmp_path):
    (points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "fedmpi = fedmpi.cli:main" in points.read_text().splitlines()
    done = python(
        installed, tmp_path, "-P", "-c", "import sys; sys.argv[1:] = ['--version']; from fedmpi.cli import main; main()"
    )
    assert (done.returncode, done.stdout) == (0, f"fedmpi {__version__}\n")


def test_metadata_names_licence_extras_and_python(installed):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    fields = message_from_string(metadata.read_text())
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"
    assert {"mpich", "openmpi", "analysis", "gpu", "test", "dev"} <= set(fields.get_all("Provides-Extra"))
    assert [file.name for file in installed.glob("*.dist-info/licenses/*")] == ["LICENSE"]


def requirements():
    """All requirements of pyproject.toml, as (name, lower bound or "") by extra; "" for those that are always there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: [re.match(r"([\w-]+)(?:>=([\w.]+))?", item).groups("") for item in items]
        for extra, items in groups.items()
    }


def imported_packages():
    """Top-level names of what the package imports, anywhere in its files."""
    names = set()
    for file in (ROOT / "fedmpi").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return {name for name in names if name not in sys.stdlib_module_names} - {"fedmpi"}


def test_the_package_imports_its_dependencies_and_nothing_else():
    distribution = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "pydantic_core": "pydantic"}
    # imported by the functions that need them, which name the extra
    optional = {"onnx", "onnxruntime", "onnxscript", "pandas", "xarray", "pynvml"}
    named = {name for name, _ in requirements()[""]}
    # peers of `fedmpi bench peers`, run by the Python of another environment
    peers = {"flwr", "appfl", "omegaconf"}
    assert {distribution.get(name, name) for name in imported_packages() - optional - peers} == named


def test_every_requirement_is_documented_with_its_bound():
    documented = (ROOT / "docs" / "dependencies.md").read_text()
    rows = set(re.findall(r"^\| `([\w-]+)` \| ([\w.]+) \|", documented, re.MULTILINE))
    assert rows == {requirement for items in requirements().values() for requirement in items}


def test_the_lock_knows_only_the_public_index_and_all_requirements():
    """A lock made behind a mirror would send everybody there."""
    lock = (ROOT / "uv.lock").read_text()
    assert set(re.findall(r"https?://([^/\"]+)", lock)) == {"pypi.org", "files.pythonhosted.org"}
    assert "file:" not in lock
    (own,) = [package for package in tomllib.loads(lock)["package"] if package["name"] == "fedmpi"]
    locked = {(item["name"], item.get("specifier", "").partition(",")[0]) for item in own["metadata"]["requires-dist"]}
    assert locked == {(name.lower(), f">={bound}") for items in requirements().values() for name, bound in items}


def test_what_the_readme_tells_to_type_is_there():
    """The commands that .ci/run takes from README.md."""
    script, readme = ROOT / ".ci" / "run", (ROOT / "README.md").read_text()
    named = re.findall(r"^<!-- command: (\w+) -->\n```bash\n([^\n]+)\n```$", readme, re.MULTILINE)
    assert [name for name, _ in named] == ["train", "test"]
    assert all(f"run_readme {name}" in script.read_text() for name, _ in named)
    assert os.access(script, os.X_OK)
    extras = set(re.findall(r"\.\[([\w,]+)\]", " ".join(command for _, command in named)))
    assert {extra for group in extras for extra in group.split(",")} <= set(requirements())
