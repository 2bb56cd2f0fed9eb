"""Values of flags that are not typed. Precedence:

    flag  >  TRTOPT_<COMMAND>_<FLAG>  >  trtopt.toml, or [tool.trtopt] in pyproject.toml  >  default

A file has a table for each command, with a key for each flag; the flags are those that the commands declare. Unknown
names and wrong types are errors: a threshold that is silently ignored is worse than none. Paths are relative to the
working directory, where the file is.

Touches: reads the two files in the working directory.
"""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import typer
from typer.core import TyperGroup, TyperOption

from trtopt.errors import UsageError
from trtopt.requires import require

FILE = "trtopt.toml"
PYPROJECT = "pyproject.toml"
PREFIX = "TRTOPT_"

_NO_FLAG = frozenset({"TRTOPT_DEBUG"})
"""Variables that are read elsewhere."""

_COMMA_SEPARATED = frozenset({"gate"})
"""Flags that take several values in one text. A file may give them as a text; other repeatable flags need a list."""

_SETTINGS = "trtopt.settings"
"""Key of the settings in the context of the command."""

Value = str | bool | int | float | list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Value of a flag and its origin; `name` is the file or variable, empty for a default."""

    value: Value | None
    origin: Literal["default", "file", "environment"]
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings by command and flag (`precision`, `calib-table`).

    `file` is the file that was read (empty: none). `ignored` is a file with settings that `file` overrides (empty:
    none).
    """

    file: str
    found: Mapping[str, Mapping[str, Setting]]
    ignored: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """Tables of a file by command. `prefix` precedes a command's name in the heading of a table."""

    name: str
    tables: Mapping[str, object]
    prefix: str = ""

    def refuse(self, what: str, *, why: str = "", fix: str = "") -> UsageError:
        return UsageError(f"{self.name}: {what}", why=why, fix=fix)


def gather(group: TyperGroup, environment: Mapping[str, str]) -> Settings:
    """Read the settings of the working directory and the environment. `group` contains all commands.

    Raises:
        UsageError: a file cannot be read, or a setting in it or in the environment is unknown or invalid.
    """
    file, ignored = _file()
    found: dict[str, dict[str, Setting]] = {name: {} for name in group.commands}
    if file is not None:
        for table, keys in file.tables.items():
            found[table] = dict(_table(file, table, keys, group))
    for command, flag, setting in _environment(environment, group):
        found[command][flag] = setting
    return Settings(file=file.name if file else "", found=found, ignored=ignored)


def apply(context: typer.Context, environment: Mapping[str, str]) -> None:
    """Make the settings the defaults of the command; warn on stderr if a file is ignored.

    Raises:
        UsageError: as in `gather`.
    """
    group = context.command
    assert isinstance(group, TyperGroup)
    settings = gather(group, environment)
    if settings.ignored:
        from trtopt.cli.console import stderr_console

        stderr_console().print(
            f"[yellow]warning:[/] \\[tool.trtopt] in {settings.ignored} is ignored because {FILE} exists"
        )
    context.meta[_SETTINGS] = settings
    if any(settings.found.values()):  # without settings no other command need be imported
        context.default_map = {
            command: {option.name: _default(option, found[flag]) for flag, option in options.items() if flag in found}
            for command, options in flags(group).items()
            for found in [settings.found[command]]
        }


def _default(option: TyperOption, setting: Setting) -> Value | None:
    """Return the setting's value as the default of a flag."""
    return [setting.value] if option.multiple and isinstance(setting.value, str) else setting.value


def origins(context: typer.Context) -> dict[str, str]:
    """Return the file or variable that set each flag (`--gate`) of a command, without flags that were typed."""
    settings: Settings | None = context.meta.get(_SETTINGS)
    if settings is None:
        return {}
    found = settings.found.get(str(context.info_name), {})
    options = [param for param in context.command.params if isinstance(param, TyperOption)]
    untyped = [_long(option) for option in options if not is_typed(context, str(option.name))]
    return {f"--{flag}": found[flag].name for flag in untyped if flag in found}


def is_typed(context: typer.Context, name: str) -> bool:
    """Return whether the parameter `name` was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def flags(group: TyperGroup) -> dict[str, dict[str, TyperOption]]:
    """Return the flags of every command that has any, by name without the leading dashes."""
    found = {}
    for name, command in group.commands.items():
        options = [param for param in command.params if isinstance(param, TyperOption)]
        if options:
            found[name] = {_long(option): option for option in options}
    return found


def variable(command: str, flag: str) -> str:
    """Return the environment variable that sets a flag."""
    return f"{PREFIX}{command}_{flag}".replace("-", "_").upper()


def near(word: str, known: Iterable[str], otherwise: str, shown: str = "{}") -> str:
    """Return `Did you mean X?`, or `otherwise` if no known word is similar."""
    found = difflib.get_close_matches(word, list(known), 1)
    return f"Did you mean {shown.format(found[0])}?" if found else otherwise


def _long(option: TyperOption) -> str:
    return next(name for name in option.opts if name.startswith("--")).removeprefix("--")


def _file() -> tuple[_File | None, str]:
    """Return the file to use, and the name of a file that is ignored."""
    own, shared = _read(FILE), _read(PYPROJECT, only_with=b"trtopt")
    tool = shared.get("tool", {}) if shared is not None else {}
    inner = tool.get("trtopt") if isinstance(tool, dict) else None
    if inner is not None and not isinstance(inner, dict):
        raise UsageError(
            f"{PYPROJECT}: tool.trtopt is not a table", fix="Write [tool.trtopt.convert], with flags below it"
        )
    if own is None:
        return (None if inner is None else _File(name=PYPROJECT, tables=inner, prefix="tool.trtopt.")), ""
    return _File(name=FILE, tables=own), "" if inner is None else PYPROJECT


def _read(name: str, only_with: bytes = b"") -> dict[str, object] | None:
    """Return the parsed file; None if it does not exist or does not contain the bytes `only_with`."""
    path = Path(name)
    try:
        if not path.exists():
            return None
        content = path.read_bytes()
        if only_with not in content:
            return None
        # Importing the TOML parser is slow, so it is imported only if there is a file.
        toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli")
        parsed: dict[str, object] = toml.loads(content.decode())
    except OSError as error:
        raise UsageError(f"{name} cannot be read", why=error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not valid TOML", why=str(error), fix="Correct the file") from error
    return parsed


def _table(file: _File, name: str, keys: object, group: TyperGroup) -> Iterable[tuple[str, Setting]]:
    """Yield the settings in one table, each checked."""
    commands = flags(group)
    shown = repr(name)[1:-1]  # a key may contain characters that move a terminal's cursor
    heading = f"[{file.prefix}{shown}]"
    if not isinstance(keys, dict):
        below = [name] if name in commands else [each for each in commands if name.replace("_", "-") in commands[each]]
        tables = " or ".join(f"[{file.prefix}{each}]" for each in below or ("convert",))
        raise file.refuse(
            f"{shown} is not inside a table", why="each command has its own", fix=f"Write it below {tables}"
        )
    if name not in commands:
        known = ", ".join(f"[{file.prefix}{command}]" for command in commands)
        fix = near(name, commands, f"Known tables: {known}", f"[{file.prefix}{{}}]")
        raise file.refuse(f"unknown table {heading}", fix=fix)
    given: dict[str, str] = {}
    for key, value in keys.items():
        flag = key.replace("_", "-")
        option = commands[name].get(flag)
        if option is None:
            otherwise = f"trtopt {name} --help lists its flags; arguments go on the command line"
            raise file.refuse(f"unknown key {key!r} in {heading}", fix=near(flag, commands[name], otherwise))
        if flag in given:
            raise file.refuse(f"{given[flag]} and {key} in {heading} are the same flag", fix="Keep one of them")
        given[flag] = key
        checked = _check(f"{file.name}: {key} in {heading}", value, option, group)
        yield flag, Setting(value=checked, origin="file", name=file.name)


def _check(where: str, value: object, option: TyperOption, group: TyperGroup) -> Value:
    """Return the value if the flag accepts it; `where` names both file and key."""
    items = value if option.multiple and isinstance(value, list) else [value]
    if option.multiple and items is not value and option.name not in _COMMA_SEPARATED:
        raise UsageError(f"{where} is {_kind(value)}", why="it must be a list", fix="Write [ ] around it")
    for item in items:
        kind = _kind(item)
        if option.is_flag:
            wanted = "true or false"
        elif kind in ("a string", "a number", "an integer"):
            wanted = _kind(_parsed(option, str(item), group, where))
        else:
            wanted = "a single string or number"
        if kind != wanted and (kind, wanted) != ("an integer", "a number"):
            raise UsageError(f"{where} is {kind}", why=f"it must be {wanted}")
    return cast(Value, value)


def _parsed(option: TyperOption, text: str, group: TyperGroup, where: str) -> object:
    """Parse the text as if it had been typed as the flag's value.

    Raises:
        UsageError: the flag does not accept it.
    """
    try:
        value = option.process_value(typer.Context(group), [text] if option.multiple else text)
    except typer.BadParameter as error:
        raise UsageError(f"{where} cannot be {text!r}", why=error.message) from error
    return value[0] if option.multiple else value


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if type(value).__module__ == "datetime":
        return "a date or time"
    kinds = {int: "an integer", float: "a number", list: "a list", dict: "a table"}
    return kinds.get(type(value), "a string")  # paths and choices are written as strings


def _environment(environment: Mapping[str, str], group: TyperGroup) -> Iterable[tuple[str, str, Setting]]:
    """Yield command, flag and setting of each variable; an empty variable sets nothing."""
    names = sorted(name for name in environment if name.startswith(PREFIX) and name not in _NO_FLAG)
    if not names:
        return
    known = {
        variable(command, flag): (command, flag, option)
        for command, options in flags(group).items()
        for flag, option in options.items()
    }
    for name in names:
        if name not in known:
            flag_names = [each.removeprefix(PREFIX) for each in known]
            otherwise = f"Write {PREFIX}<COMMAND>_<FLAG>; trtopt config lists both"
            fix = near(name.removeprefix(PREFIX), flag_names, otherwise, f"{PREFIX}{{}}")
            raise UsageError(f"environment variable {name} is unknown", why="it matches no flag", fix=fix)
        command, flag, option = known[name]
        text = environment[name]
        if not text.strip():
            continue
        if option.multiple and flag not in _COMMA_SEPARATED:
            yield command, flag, Setting(value=_words(name, text, option, group), origin="environment", name=name)
            continue
        parsed = _parsed(option, text, group, f"environment variable {name}")
        value = parsed if isinstance(parsed, bool) else text
        yield command, flag, Setting(value=value, origin="environment", name=name)


def _words(name: str, text: str, option: TyperOption, group: TyperGroup) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"environment variable {name}", why=str(error), fix="Close the quotes") from error
    for word in words:
        _parsed(option, word, group, f"environment variable {name}")
    return words
