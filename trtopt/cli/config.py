"""`trtopt config`: show every setting and the origin of its value.

Touches: prints on stdout.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from trtopt.cli.options import Format, TextOrJsonFlag

if TYPE_CHECKING:
    from typer.core import TyperOption

    from trtopt.cli.settings import Setting, Value


def config(
    context: typer.Context,
    command: Annotated[
        str | None, typer.Argument(help="Show this command's settings. Default: all.", show_default=False)
    ] = None,
    format: TextOrJsonFlag = Format.text,
) -> None:
    """Show the value of every flag that is not typed: from the environment, a file, or the default.

    Precedence: the command line, TRTOPT_<COMMAND>_<FLAG>, trtopt.toml (or [tool.trtopt] in pyproject.toml), the
    default.
    """
    import json
    import os

    from typer.core import TyperGroup

    from trtopt.cli.settings import flags, gather, near
    from trtopt.codec import encode
    from trtopt.errors import UsageError

    if format not in (Format.text, Format.json):
        raise UsageError(f"config does not support --format {format.value}", fix="Choose text or json")
    group = context.find_root().command
    assert isinstance(group, TyperGroup)
    commands = flags(group)
    if command is not None and command not in commands:
        fix = near(command, commands, f"There are {', '.join(commands)}")
        raise UsageError(f"no command {command!r} has settings", fix=fix)
    settings = gather(group, os.environ)
    chosen = [command] if command else list(commands)
    values = {name: _values(commands[name], settings.found[name]) for name in chosen}
    if format is Format.json:
        print(json.dumps({"schema_version": 1, "file": settings.file or None, "commands": encode(values)}, indent=1))
    else:
        _print(values, settings.file)


def _values(options: Mapping[str, TyperOption], found: Mapping[str, Setting]) -> dict[str, Setting]:
    from trtopt.cli.settings import Setting

    return {
        flag: found.get(flag) or Setting(value=_plain(option.default), origin="default")
        for flag, option in options.items()
    }


def _plain(default: object) -> Value | None:
    """Return a flag's default as it would be written in a file."""
    if isinstance(default, Enum):
        return str(default.value)
    return default if default is None or isinstance(default, bool | int | float) else str(default)


def _print(values: Mapping[str, Mapping[str, Setting]], file: str) -> None:
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not file:
        console.print(
            "no trtopt.toml, and no [tool.trtopt] in pyproject.toml, in this directory", markup=False, style="dim"
        )
    for command, settings in values.items():
        table = Table.grid(padding=(0, 3))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        table.add_column(no_wrap=True)
        for flag, setting in settings.items():
            shown = "–" if setting.value is None else json.dumps(setting.value, ensure_ascii=False)
            style = "dim" if setting.origin == "default" else ""
            table.add_row(Text(flag, style), Text(shown, style), Text(setting.name or setting.origin, style))
        console.print(f"\n[{command}]", markup=False, style="bold")
        console.print(table)
