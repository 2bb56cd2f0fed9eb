"""Class of every command.

It shows flags in groups, rejects repeated flags and flags without effect, and errors name the settings they are about.

Touches: nothing.
"""

from __future__ import annotations

import copy
import re
import shlex
from typing import Any

from typer.core import TyperCommand, TyperOption

from trtopt.cli import idle
from trtopt.cli.options import PANELS
from trtopt.cli.settings import origins
from trtopt.errors import UsageError

Context = Any
"""Context of a command. Its class is in a package of its own or inside typer, depending on typer's version."""


class Command(TyperCommand):
    """Command that never silently drops a flag that was typed."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            UsageError: a flag that takes one value is given more than once.
        """
        asks_for_help = bool({*ctx.help_option_names} & {*args})
        if not ctx.resilient_parsing and not asks_for_help:  # resilient: shell completion of an unfinished line
            self._refuse_repeated(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Context) -> Any:
        """Run the command.

        Raises:
            UsageError: a flag that was typed has no effect; or from the command, extended by the origin of flags that
                were not typed.
        """
        try:
            idle.refuse(ctx)
            return super().invoke(ctx)
        except UsageError as error:
            set_by = origins(ctx)
            flags = dict.fromkeys(re.findall(r"--[a-z][a-z0-9-]*", str(error)))
            if not flags.keys() & set_by.keys():
                raise
            note = "; ".join(f"{flag} is set by {set_by[flag]}" for flag in flags if flag in set_by)
            raise UsageError(error.what, why=error.why, fix=f"{error.fix} ({note})".strip()) from error

    def format_options(self, ctx: Context, formatter: Any) -> None:
        """Write arguments and flags, each group under its heading."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *PANELS, "Options")}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                panel = getattr(param, "rich_help_panel", None) or "Options"
                groups["Arguments" if param.param_type_name == "argument" else panel].append(record)
        for name, rows in groups.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl(rows)

    def _refuse_repeated(self, ctx: Context, args: list[str]) -> None:
        # The parser keeps only the last value of a flag, unless the flag takes several.
        keeping_all = copy.copy(self)
        keeping_all.params = [_taking_several(param) for param in self.params]
        typed, _, _ = keeping_all.make_parser(ctx).parse_args(list(args))
        for param in self.params:
            values = typed.get(str(param.name)) if _takes_one(param) else None
            if values and len(values) > 1:
                flag = max(param.opts, key=len)
                given = ", ".join(map(shlex.quote, values))
                raise UsageError(f"{flag} is given more than once", why=given, fix="Give it once")


def _takes_one(param: object) -> bool:
    """Return whether the parameter is a flag that takes exactly one value."""
    return isinstance(param, TyperOption) and not param.is_flag and not param.multiple


def _taking_several(param: Any) -> Any:
    if not _takes_one(param):
        return param
    several = copy.copy(param)
    several.multiple = True
    return several
