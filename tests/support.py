"""Paths and helpers for several test modules."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "samples/digits/model.onnx"
CALIB = ROOT / "calibration/digits"
EVAL = ROOT / "samples/digits/eval.npz"

SLOW = frozenset(
    "test_ci_samples test_command test_comparison test_convert test_damaged_files test_docs test_exit_codes "
    "test_export_cli test_forms test_given_table test_html_in_browser test_inputs_and_outputs test_masks "
    "test_node_cases test_operands test_plugins test_ray test_resume test_server test_shards test_speed "
    "test_streams".split()
)
"""Modules that take more than 15 s each, and together two thirds of the time of all tests: `make test` runs them."""


@dataclass(frozen=True)
class Done:
    """Result of a command: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    shape: tuple[int | str, ...] = ("n", 16, 8, 8),
    out: tuple[int | str, ...] = ("n", 16, 8, 8),
) -> Path:
    """Write a net with one input `x` and one output `y`, at opset 17."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def accepted(line: str) -> str:
    """Parse a command line as trtopt does, without running it, and return the command's name.

    Raises an error of trtopt, or of the command-line library, for an unknown flag, a value that is not among the
    choices, a gate or a shape that does not parse.
    """
    import typer

    from trtopt.bench.gate import parse_gates as parse_speed
    from trtopt.cli.commands import app
    from trtopt.compare.gates import parse_gates as parse_drift
    from trtopt.shapes import parse_shapes

    group: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    root = group.make_context("trtopt", [words[0]])
    name, command, rest = group.resolve_command(root, words)
    context = command.make_context(name, rest, parent=root)
    for param in command.params:
        value, choices = context.params[param.name], param.metavar or ""
        if param.name == "answers":
            value = re.sub(r"^top[1-9]\d*$", "top5", value)  # any number may follow top
        if choices.startswith("[") and value is not None and str(value) not in choices.strip("[]").split("|"):
            raise ValueError(f"{param.opts[0]} {value} is not one of {choices}")
    for gates in context.params.get("gate") or ():
        (parse_speed if name == "bench" else parse_drift)(gates)
    for shape in parse_shapes(context.params.get("shape") or ()):
        if not shape.sizes:
            raise ValueError(f"--shape {shape.text} does not parse")
    return str(name)
