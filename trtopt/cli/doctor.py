"""`trtopt doctor`: show the environment, what can be built and run in it, and how to install the rest.

Touches: prints on stdout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from trtopt.cli.options import Format, TextOrJsonFlag

if TYPE_CHECKING:
    from rich.table import Table

    from trtopt.commands.doctor import Environment


def doctor(
    format: TextOrJsonFlag = Format.text,
) -> None:
    """Show the environment of this machine, what can be built and run on it, and how to install the rest.

    Exits 0 if an engine can be built here, else 3.
    """
    import json

    from trtopt.codec import encode
    from trtopt.commands.doctor import probe
    from trtopt.errors import EXIT_UNABLE, UsageError

    if format not in (Format.text, Format.json):
        raise UsageError(f"doctor does not support --format {format.value}", fix="Choose text or json")
    found = probe()
    if format is Format.json:
        print(json.dumps({"schema_version": 1, **encode(found)}, indent=1))
    else:
        from trtopt.cli.console import show

        show(_table(found))
    if not found.can_build:
        raise typer.Exit(EXIT_UNABLE)


def _table(found: Environment) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, text: str, style: str = "") -> None:
        table.add_row(name, f"[{style}]{escape(text)}[/]" if style else escape(text))

    row("builds", found.build, "green" if found.can_build else "red")
    row("runs", found.run, "green" if found.can_run else "yellow")
    table.add_row()
    row("platform", found.platform)
    row("python", found.python)
    for candidate in found.tensorrt:
        usable = f"{candidate.version} from {candidate.origin}"
        row(candidate.name, candidate.reason or usable, "dim" if candidate.reason else "")
    driver = found.driver
    row("driver", driver.absent or f"{driver.version}, CUDA {driver.cuda} or older")
    for gpu in driver.gpus:
        memory = f"{gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else "memory shared with the CPU"
        row("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}")
    row("onnxruntime", ", ".join(found.providers) or "does not work here", "" if found.providers else "red")
    row("packages", ", ".join(f"{name} {version}" for name, version in found.packages.items()))
    if found.warnings or found.advice:
        table.add_row()
    for warning in found.warnings:
        row("warning", warning, "yellow")
    for advice in found.advice:
        row("to install", f"{advice.what}: {advice.command}")
    table.add_row()
    for index, note in enumerate(found.portability):
        row("" if index else "portability", note, "dim")
    return table
