"""Which room may import which, and who may use which library: read from the source, without importing it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedmpi"
MODULES = {
    ".".join(("fedmpi", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Every room and the rooms that it may import besides itself; all may import `errors`, nobody imports those at the end.
LOW = {"config", "seeding"}
MIDDLE = {"reid", "pruning", "sparse"}
MAY_IMPORT = {
    "errors": set(),
    "config": set(),
    "seeding": set(),
    "pruning": LOW,
    "reid": LOW,
    "sparse": LOW,
    "rawdata": {"seeding", "reid"},
    "comm": {*LOW, "sparse"},
    "federated": {*LOW, *MIDDLE, "comm"},
    "record": set(),
    "run_folder": set(),
    "logbook": {"comm", "federated", "record", "sparse", "pruning"},
    "wording": set(),
    "console": {"comm", "pruning", "wording"},
    "event_file": set(),
    "scalars": {"record", "event_file"},
    "stopping": set(),
    "snapshot": {*LOW, *MIDDLE, "comm", "federated", "record"},
    "resume": {*LOW, "comm", "record", "run_folder"},
    "journal": {*LOW, "sparse", "federated", "record", "run_folder", "logbook", "resume"},
    "briefing": {*LOW, *MIDDLE, "comm", "federated", "record", "run_folder", "logbook"},
    "train": {
        *LOW,
        *MIDDLE,
        "comm",
        "federated",
        "record",
        "run_folder",
        "logbook",
        "console",
        "stopping",
        "snapshot",
        "resume",
        "journal",
        "briefing",
    },
    "bench": {*LOW, *MIDDLE, "comm", "wording"},
    "slurm": LOW,
    "doctor": {*LOW, *MIDDLE, "comm", "federated", "record", "run_folder"},
    "farewell": set(),
    "cli": {
        "config",
        "console",
        "farewell",
        "stopping",
        "run_folder",
        "train",
        "bench",
        "slurm",
    },  # other commands are looked up by name
    "cli_config": LOW,
    "cli_data": {*LOW, "reid", "cli_rawdata"},
    "cli_rawdata": {"rawdata", "reid"},
    "packed": set(),
    "exporting": {*LOW, "federated", "packed", "reid", "run_folder"},
    "cli_export": {"exporting", "wording"},
    "evaluate": {*LOW, "reid"},
    "cli_evaluate": {*LOW, "reid", "evaluate"},
    "cli_inspect": {"record", "wording"},
    "cli_job": {*LOW, "slurm"},
    "cli_scalars": {"record", "scalars"},
    "sweep": {"config", "run_folder"},
    "cli_sweep": {"sweep"},
    "__main__": {"cli"},
}
LIBRARIES = {
    "mpi4py": {"comm", "train", "briefing", "cli", "farewell", "doctor", "bench"},
    "h5py": {"record", "doctor", "rawdata"},  # rawdata: CUHK03 is released as an HDF5 file
    "click": {
        "cli",
        "cli_config",
        "cli_data",
        "cli_export",
        "cli_rawdata",
        "cli_evaluate",
        "cli_inspect",
        "cli_job",
        "cli_scalars",
        "cli_sweep",
        "doctor",
        "farewell",
        "bench",
    },
    "torchvision": {"reid"},
    "rich": {"console", "doctor"},
    "sklearn": {"reid"},
    "PIL": {"reid", "rawdata"},
    "pandas": {"record"},
    "xarray": {"record"},
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every imported module by its full name, and whether that happens when the module is loaded."""
    tree = ast.parse(path.read_text(), str(path))
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_types_only(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else str(node.module), id(node) not in late)


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def room(module: str) -> str:
    """Return the second part of a module's name; `errors` for the package itself, which only has the version."""
    return [*module.split("."), "errors"][1]


def test_every_room_is_known():
    assert {room(module) for module in MODULES} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    here = room(module)
    allowed = {*MAY_IMPORT[here], here, "errors"}
    used = {room(name) for name, _ in imports(MODULES[module]) if name.split(".")[0] == "fedmpi"}
    assert used <= allowed, f"{module} imports {', '.join(sorted(used - allowed))}"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_rooms(module):
    for name, _ in imports(MODULES[module]):
        owners = LIBRARIES.get(name.split(".")[0])
        assert owners is None or room(module) in owners, f"{module} imports {name}"


def test_no_cycles():
    edges = {
        module: {name for name, at_load in imports(path) if at_load and name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in sorted(edges[module]):
                # A room's __init__ imports its own modules; that these are below it is no cycle.
                if not module.startswith(f"{target}."):
                    visit(target, (*trail, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["config", "show"],
        ["doctor", "--help"],
        ["bench", "--help"],
        ["bench", "exchange", "--help"],
        ["data", "--help"],
        ["job", "--help"],
        ["job"],
    ],
)
def test_help_starts_no_heavy_library(argv):
    code = (
        "import sys\n"
        f"sys.argv = {['fedmpi', *argv]!r}\n"
        "from fedmpi.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'mpi4py', 'torchvision', 'sklearn', 'h5py', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
