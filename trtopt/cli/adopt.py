"""`trtopt adopt`: record an engine that trtexec built as the engine of a run.

Touches: the run directory; the GPU, as the engine is loaded; prints on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import QuietFlag, VerboseFlag


def adopt(
    run: Annotated[
        Path, typer.Argument(help="The run directory, whose graph the engine was built from.", show_default=False)
    ],
    engine: Annotated[
        Path | None, typer.Argument(help="The engine. Default: model.engine in the run directory.", show_default=False)
    ] = None,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Make an engine that trtexec built from a run's graph the engine of that run.

    \b
    Example, after build.sh of convert --target:
      trtopt adopt trtopt-out/model/int8
      trtopt compare trtopt-out/model/int8/fp32.onnx trtopt-out/model/int8 --data data/eval

    The engine is loaded, and its tensors, shapes and layers are checked. compare, bench, predict and package then use
    it as if trtopt had built it. A serialized engine is code: adopt only engines that you trust.

    Exits 0, 2 if it is not an engine of that graph, for its shapes and in its precision, 3 if this machine cannot load
    engines.
    """
    from trtopt.cli.console import Narrator
    from trtopt.commands.adopt import adopt as run_it
    from trtopt.stages.build import engine_line

    with Narrator(quiet=quiet, verbose=verbose) as emit:
        found = run_it(run, engine, emit)
    print(f"{run}: {engine_line(found)}")
