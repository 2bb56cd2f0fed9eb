"""`trtopt merge`: make the result of the whole from the partial results of all shards.

Touches: the output, or the run directory; prints the result on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import OUTPUT, Format, FormatFlag, QuietFlag, VerboseFlag


def merge(
    partials: Annotated[
        list[Path], typer.Argument(help="The files that --shard wrote, all of them.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The run directory, or the file of the rows. Default: that which the shards were asked for.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    format: FormatFlag = Format.text,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Make the table, the report or the rows of the whole, as one process would have made them.

    \b
    Example:
      trtopt merge trtopt-out/model/int8/*.partial

    Exits as the command that wrote the shards, with 2 if they do not belong together or one is missing. The model and
    the data are needed, except for the rows of `predict`.
    """
    from trtopt.cli.console import Narrator
    from trtopt.cli.show import Printed, calibrated, finish, predicted
    from trtopt.commands.merge import merge as run
    from trtopt.types import Predictions, Report

    with Narrator(quiet=quiet, verbose=verbose) as emit:
        result, folder = run(partials, out, emit)
    if isinstance(result, Report):
        finish(result, Printed(format=format.value, told=emit.told))
    if isinstance(result, Predictions):
        predicted(result, format.value)
    elif folder is not None:
        calibrated(result, folder)
