"""Help and shell completion: groups, examples that parse, and choices."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer
from support import Done

from trtopt.cli.commands import app
from trtopt.cli.options import PANELS

Cli = Callable[..., Done]
GROUP = typer.main.get_command(app)
LONG = ("convert", "export", "calibrate", "compare", "bench")
EXAMPLE = re.compile(r"^ +(trtopt .*)$", re.MULTILINE)


@pytest.mark.parametrize("name", LONG)
def test_help_shows_flags_in_groups(name: str, cli: Cli) -> None:
    headings = re.findall(r"^(\w+):$", cli(name, "--help").out, re.MULTILINE)
    groups = [heading for heading in headings if heading in PANELS]
    assert groups == sorted(groups, key=PANELS.index)
    assert {"Input", "Output"} <= set(groups)
    assert headings[-1] == "Options"  # only --help
    assert len(cli(name, "--help").out.partition("\nOptions:\n")[2].splitlines()) == 1


@pytest.mark.parametrize("name", LONG)
def test_help_begins_with_an_example_that_parses(name: str, cli: Cli) -> None:
    text = cli(name, "--help").out
    examples = EXAMPLE.findall(text)
    assert examples
    assert text.index(examples[0]) < text.index("Arguments:")
    for example in examples:
        program, command, *words = shlex.split(example)
        assert (program, command) == ("trtopt", name)
        GROUP.commands[command].make_context(command, words)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("flag", "names"),
    [("--precision", "bf16|fp16|fp32|fp8|int8"), ("--rest", "bf16|fp16|fp32"), ("--backend", "onnxruntime|tensorrt")],
)
def test_help_lists_the_choices(flag: str, names: str, cli: Cli) -> None:
    assert f"{flag} [{names}]" in cli("convert", "--help").out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("trtopt convert m.onnx --precision i", "int8"),
        ("trtopt convert m.onnx --method ent", "entropy"),
        ("trtopt calibrate m.onnx --precision fp", "fp8"),
        ("trtopt convert m.onnx --backend onnx", "onnxruntime"),
        ("trtopt convert m.onnx --format ju", "junit"),
        ("trtopt comp", "compare"),
    ],
)
def test_the_shell_completes_choices(line: str, offered: str) -> None:
    completing = {"_TRTOPT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    program = "import sys; sys.argv = ['trtopt']; from trtopt.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **completing}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [offered], done.stderr


def test_every_size_is_written_with_its_unit(cli: Cli) -> None:
    refused = cli("convert", "m.onnx", "--workspace", "4096")
    assert "missing unit in --workspace" in refused.err or "does not exist" in refused.err
    from trtopt.cli.options import size
    from trtopt.errors import UsageError

    assert size("4GiB", "--workspace") == 4 << 30
    assert size(None, "--workspace") is None
    with pytest.raises(UsageError, match="missing unit in --workspace"):
        size("4096", "--workspace")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("convrt",), "error: no such command 'convrt'. Did you mean 'convert'? See trtopt --help"),
        (("package", "m.onnx"), "error: missing option '--triton'. See trtopt package --help"),
        (("bench", "--seconds", "x", "m.onnx"), "error: invalid value for '--seconds': "),
    ],
)
def test_an_error_of_usage_is_one_line(cli: Cli, arguments: tuple[str, ...], line: str) -> None:
    done = cli(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(line)


def test_without_a_command_the_help_is_shown_once(cli: Cli) -> None:
    done = cli()
    assert (done.code, done.out) == (2, "")
    assert done.err.count("Usage:") == 1
    assert "Traceback" not in done.err
