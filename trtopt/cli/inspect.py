"""`trtopt inspect`: show the contents of an ONNX file or run directory, and each node's precision with its reason.

Touches: reads the file; prints on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import Format, OnlyFlag, TextOrJsonFlag


def inspect(
    file: Annotated[
        Path, typer.Argument(help="An ONNX file, a run directory or an engine in one.", show_default=False)
    ],
    nodes: Annotated[bool, typer.Option("--nodes", help="List every node with its precision and the reason.")] = False,
    tensorrt: Annotated[
        bool,
        typer.Option("--tensorrt", help="Ask TensorRT's parser which nodes it does not support, and suggest fixes."),
    ] = False,
    only: OnlyFlag = None,
    format: TextOrJsonFlag = Format.text,
) -> None:
    """Show inputs, outputs, operators, parameters and precision of a model, with the reason for each precision."""
    import json

    from trtopt.codec import encode
    from trtopt.commands.inspect import look
    from trtopt.errors import UsageError
    from trtopt.flags import lowered_only

    found = look(file, tensorrt=tensorrt, only=lowered_only(only or (), "int8"))
    if format is Format.json:
        print(json.dumps({"schema_version": 1, **encode(found)}, indent=1))
    elif format is Format.text:
        from trtopt.cli.console import stdout_console
        from trtopt.report.page.inspection import renderable

        stdout_console().print(renderable(found, nodes=nodes))
    else:
        raise UsageError(f"inspect does not support --format {format.value}", fix="Choose text or json")
