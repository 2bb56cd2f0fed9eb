"""Tests of the architecture: which modules may import which, and which packages `trtopt --help` may not import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import SLOW

import trtopt
from trtopt.plugins import load, names

PACKAGE = Path(trtopt.__file__).parent
# From the bottom to the top: a module imports those of its own layer's package, and of lower layers. `__init__` is the
# public API; everything may read the version in it.
LAYERS = (
    ("types", "errors"),
    (
        "requires",
        "counts",
        "marks",
        "parallel",
        "code_digest",
        "events",
        "codec",
        "plugins",
        "formats",
        "shapes",
        "verdict",
        "wording",
    ),
    ("child",),
    ("writing",),
    ("times",),
    ("shards",),
    ("graph",),
    ("data", "engine", "export"),
    ("calibrate",),
    ("precision",),
    ("compare",),
    ("tune",),
    ("bench",),
    ("serve",),
    ("fleet",),
    ("rundir", "manifest"),
    ("predict",),
    ("flags", "plan", "store"),
    ("rehearsal",),
    ("candidate",),
    ("inspection",),
    ("report",),
    ("run",),
    ("stages",),
    ("commands",),
    ("api",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
PLUG_INS = {
    "calibrate/methods": "amax",
    "compare/kinds": "reader",
    "engine": "build",
    "precision": "apply",
    "predict/formats": "join",
    "report": "render",
}
HEAVY = ("torch", "tensorflow", "tensorrt", "tensorrt_rtx", "onnx", "onnx_ir", "onnxruntime", "numba", "numpy", "PIL")


def place(module: str) -> str:
    """Return the top-level package or module, below `trtopt`, of a dotted name."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(path: Path) -> set[str]:
    """Return the places of trtopt that a file imports from, anywhere in it."""
    places = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "trtopt":
            names = [alias.name for alias in node.names if alias.name != "__version__"]
            places |= {place(f"trtopt.{name}") if node.module == "trtopt" else place(node.module) for name in names}
    return places


def files(name: str) -> list[Path]:
    """Return the source files of a top-level package or module."""
    return sorted((PACKAGE / name).rglob("*.py")) if (PACKAGE / name).is_dir() else [PACKAGE / f"{name}.py"]


@pytest.mark.parametrize("number", range(len(LAYERS)), ids=lambda number: LAYERS[number][0])
def test_imports_point_down(number: int) -> None:
    below = {name for layer in LAYERS[:number] for name in layer}
    for name in LAYERS[number]:
        for path in files(name):
            assert imported(path) <= below | {name}, path


def test_every_module_has_its_place() -> None:
    places = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert places - {"__pycache__"} == {name for layer in LAYERS for name in layer}


@pytest.mark.parametrize("folder", PLUG_INS)
def test_a_folder_of_plug_ins_holds_nothing_else(folder: str) -> None:
    modules = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    assert set(names("trtopt." + folder.replace("/", "."))) == modules
    for name in modules:
        assert hasattr(load("trtopt." + folder.replace("/", "."), name, "plug-in"), PLUG_INS[folder])


def test_a_backend_is_named_by_its_own_folder_and_as_the_default_only() -> None:
    backends = names("trtopt.engine")
    for folder in ("stages", "commands", "cli", "candidate", "plan"):
        for path in files(folder):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare):
                    constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                    # The diagnosis of `doctor` is about packages.
                    assert path.stem == "doctor" or not constants & set(backends), (path, node.lineno)


def test_flags_are_parsed_at_the_edge_alone() -> None:
    parsers = {"parse_gates", "parse_shapes", "output_kinds", "input_dtypes", "keeps", "lowered_only"}
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli") or path.is_relative_to(PACKAGE / "api"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not parsers & {alias.name for alias in node.names}, path


def test_types_and_errors_need_only_the_standard_library() -> None:
    for path in (*files("types"), *files("errors"), *files("events")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
                own = module.startswith("trtopt.types")
                assert own or module.split(".")[0] in sys.stdlib_module_names, (path, module)


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import sys; sys.argv = ['trtopt', '--help']\n"
        "from trtopt.cli.app import main\n"
        "try: main()\nexcept SystemExit as leave: assert not leave.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_public_names_are_pinned() -> None:
    assert trtopt.__all__ == [
        "CalibrationTable",
        "Comparison",
        "Engine",
        "OnnxModel",
        "Report",
        "TrtoptError",
        "TypedModel",
        "bench",
        "calibrate",
        "compare",
        "convert",
        "export",
        "inspect",
        "merge",
        "predict",
        "sensitivity",
        "tune",
    ]
    for name in trtopt.__all__:
        assert getattr(trtopt, name) is not None


def test_contributing_names_the_places_of_things() -> None:
    root = PACKAGE.parent
    rows = re.findall(r"\| `(trtopt/[\w/]+\.py)` \| `(\w+)` \|", (root / "CONTRIBUTING.md").read_text())
    assert len(rows) > 9
    for file, name in rows:
        tree = ast.parse((root / file).read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        defined |= {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
        assert name in defined, (file, name)


def test_the_slow_modules_exist() -> None:
    stems = {path.stem for path in Path(__file__).parent.rglob("test_*.py")}
    assert stems >= SLOW
