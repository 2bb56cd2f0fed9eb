"""`trtopt clean`: remove what runs wrote.

Touches: run directories, with `--yes`; prints on stdout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtopt.cli.options import RUN
from trtopt.wording import counted


def clean(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Run directories, or folders of them. Default: trtopt-out.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.", rich_help_panel=RUN)] = False,
) -> None:
    """List the files of run directories with their sizes; with --yes, remove them.

    \b
    Example:
      trtopt clean trtopt-out/model/int8 --yes

    Only files that a manifest lists are removed, with the manifest itself.
    """
    from trtopt.commands.clean import removable, remove
    from trtopt.report.page.words import plain, size
    from trtopt.rundir import ROOT

    if not folders and not ROOT.is_dir():
        print(f"nothing to remove: there is no {ROOT} here")
        return
    found = removable(folders or [ROOT])
    for entry in found:
        print(plain(f"{size(entry.size):>9}  {entry.run_dir}  ({counted(len(entry.files), 'file')})"))
        if yes:
            remove(entry)
    total = f"{size(sum(entry.size for entry in found))} in {len(found)} run directories"
    print(f"removed {total}" if yes else f"{total}; add --yes to remove it" if found else "nothing to remove")
