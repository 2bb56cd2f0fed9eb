"""`trtopt report`: what a run found, once more and in any format.

Touches: reads the run directory; prints on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import Format, FormatFlag


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    format: FormatFlag = Format.text,
) -> None:
    """Print the report that a run left, in any format: one run, and an annotation, a summary and a JUnit file of it.

    Exits 0 whatever the verdict is: the run itself had its exit code. To judge what was measured by other gates, use
    trtopt compare --from.
    """
    from trtopt.report import show
    from trtopt.stages.report import load

    show(format.value, load(run))
