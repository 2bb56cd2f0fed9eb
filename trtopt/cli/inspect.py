"""`trtopt inspect`: what is in an ONNX file or a run directory, and what INT8 would do with each node, and why.

Touches: reads the file; prints on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import Format


def inspect(
    file: Annotated[
        Path, typer.Argument(help="An ONNX file, a run directory or an engine in one.", show_default=False)
    ],
    nodes: Annotated[bool, typer.Option("--nodes", help="List the decision about every node.")] = False,
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="Ask TensorRT's parser which nodes it refuses, and say what helps.")
    ] = False,
    format: Annotated[Format, typer.Option(help="text or json.")] = Format.text,
) -> None:
    """Show inputs, outputs, operators, parameters and precision of a model, and why each node has the one it has."""
    import json

    from trtopt.codec import encode
    from trtopt.commands.inspect import look
    from trtopt.errors import UsageError

    found = look(file, tensorrt=tensorrt)
    if format is Format.json:
        print(json.dumps({"schema_version": 1, **encode(found)}, indent=1))
    elif format is Format.text:
        from rich.console import Console

        from trtopt.report.page.inspection import renderable

        Console(highlight=False).print(renderable(found, nodes=nodes))
    else:
        raise UsageError(f"inspect prints no {format.value}", fix="Choose text or json")
