"""`trtopt report`: print the report of a run again, in any format.

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
    """Print the report of a run in any format, so that one run can yield an annotation, a summary and a JUnit file.

    Exits 0 for any verdict. To apply other gates to the results, use trtopt compare --from.
    """
    from trtopt.report import show
    from trtopt.run import load

    show(format.value, load(run))
