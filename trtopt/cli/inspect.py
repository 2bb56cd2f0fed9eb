"""`trtopt inspect`: show the contents of an ONNX file or run directory, and each node's precision with its reason.

Touches: reads the file; prints on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import PRECISION, Format, KeepFlag, OnlyFlag, RestFlag, TextOrJsonFlag, choice
from trtopt.cli.settings import is_typed
from trtopt.precision import precisions


def inspect(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="An ONNX file, a run directory or an engine in one.", show_default=False)
    ],
    nodes: Annotated[bool, typer.Option("--nodes", help="List every node with its precision and the reason.")] = False,
    tensorrt: Annotated[
        bool,
        typer.Option("--tensorrt", help="Ask TensorRT's parser which nodes it does not support, and suggest fixes."),
    ] = False,
    precision: Annotated[
        str, choice("Precision of the conversion that is shown.", precisions(), PRECISION, "--precision", "-p")
    ] = "int8",
    rest: RestFlag = "fp16",
    keep: KeepFlag = None,
    only: OnlyFlag = None,
    format: TextOrJsonFlag = Format.text,
) -> None:
    """Show inputs, outputs, operators, parameters and precision of a model, with the reason for each precision.

    Of an FP32 model it shows what a conversion would decide without samples. With samples, a conversion also keeps in
    FP32 what exceeds a 16-bit type's range, and in higher precision what would fail the default gates.

    \b
    Example:
      trtopt inspect model.onnx --precision int8 --keep first --nodes
    """
    import json

    from trtopt.codec import encode
    from trtopt.commands.inspect import look
    from trtopt.errors import UsageError
    from trtopt.flags import keeps, lowered_only
    from trtopt.stages.target import Target

    target = Target(
        precision=precision,
        rest=rest,
        bias_correction=False,
        keep=keeps(keep or (), precision, rest),
        only=lowered_only(only or (), precision),
    )
    asked = any(is_typed(context, name) for name in ("precision", "rest", "keep", "only"))
    found = look(file, tensorrt=tensorrt, target=target if asked else None)
    if format is Format.json:
        print(json.dumps({"schema_version": 1, **encode(found)}, indent=1))
    elif format is Format.text:
        from trtopt.cli.console import show
        from trtopt.report.page.inspection import renderable

        show(renderable(found, nodes=nodes))
    else:
        raise UsageError(f"inspect does not support --format {format.value}", fix="Choose text or json")
