"""`trtopt report`: print the report of a run again, in any format, or those of several runs side by side.

Touches: reads the run directories; prints on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import Format, FormatFlag


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories. Several are shown side by side.", show_default=False)
    ],
    format: FormatFlag = Format.text,
) -> None:
    """Print the report of a run in any format, so that one run can yield an annotation, a summary and a JUnit file.

    \b
    Example:
      trtopt report trtopt-out/model/fp16 trtopt-out/model/int8 --format html > both.html

    Exits 0 for any verdict. To apply other gates to the results, use trtopt compare --from.
    """
    from trtopt.commands.report import gathered
    from trtopt.report import show

    show(format.value, gathered(runs))
