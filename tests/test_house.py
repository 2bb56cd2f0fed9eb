"""The rules of the house: who may import whom, and what `trtopt --help` may not cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trtopt

PACKAGE = Path(trtopt.__file__).parent
FOUNDATION = ("types", "errors", "events", "requires", "verdict", "__init__")
ORDER = ("export", "data", "calibrate", "precision", "engine", "compare", "bench", "report")
TOP = (
    "codec",
    "config",
    "rundir",
    "shapes",
    "store",
    "candidate",
    "inspection",
    "stages",
    "checks",
    "pipeline",
    "comparison",
    "benching",
    "cli",
)
HEAVY = ("torch", "tensorflow", "tensorrt", "tensorrt_rtx", "onnx", "onnx_ir", "onnxruntime", "numba", "numpy", "PIL")


def imported(path: Path) -> set[str]:
    """Names of trtopt's own modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "trtopt":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("folder", ORDER)
def test_imports_point_down_the_pipeline_only(folder: str) -> None:
    # report renders what `codec` encodes and what `inspection` found; the others know nothing above them.
    allowed = {*FOUNDATION, *ORDER[: ORDER.index(folder) + 1], "codec"} | (
        {"inspection"} if folder == "report" else set()
    )
    for path in (PACKAGE / folder).glob("*.py"):
        assert imported(path) - {"__version__"} <= allowed, path


def test_the_foundation_imports_nothing_of_ours_but_itself() -> None:
    for name in ("types", "errors", "events", "requires", "verdict"):
        assert imported(PACKAGE / f"{name}.py") <= set(FOUNDATION)


def test_every_module_has_its_place() -> None:
    places = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert places - {"__pycache__", "__main__"} == {*FOUNDATION, *ORDER, *TOP}


def test_types_and_errors_need_only_the_standard_library() -> None:
    for name in ("types", "errors", "events"):
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert module.split(".")[0] in sys.stdlib_module_names, (name, module)


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
        "BuildPlan",
        "ComparePlan",
        "Comparison",
        "ConvertPlan",
        "DataPlan",
        "Engine",
        "Report",
        "TrtoptError",
        "TypedModel",
        "compare_models",
        "convert",
    ]
    for name in trtopt.__all__:
        assert getattr(trtopt, name) is not None
