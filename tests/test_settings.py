"""Tests of flag values from the environment and from files: precedence, errors and cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import CALIB, DIGITS, EVAL, Done

Cli = Callable[..., Done]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter an empty working directory, with an environment without settings."""
    for name in list(os.environ):
        if name.startswith("TRTOPT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "trtopt.toml") -> None:
    Path(name).write_text(text, encoding="utf-8")


def shown(cli: Cli, command: str, flag: str) -> tuple[object, str, str]:
    """Return value, origin and its name, as `trtopt config` shows them."""
    done = cli("config", command, "--format", "json")
    assert done.code == 0, done.err
    setting = json.loads(done.out)["commands"][command][flag]
    return setting["value"], setting["origin"], setting["name"]


def refusal(done: Done) -> str:
    """Return the only line of an error."""
    assert done.code == 2, (done.code, done.out, done.err)
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_without_a_file_every_value_is_the_default(cli: Cli) -> None:
    commands = json.loads(cli("config", "--format", "json").out)["commands"]
    assert {"convert", "export", "calibrate", "compare"} <= set(commands)
    assert {setting["origin"] for flags in commands.values() for setting in flags.values()} == {"default"}
    assert commands["convert"]["precision"]["value"] == "fp16"
    assert commands["convert"]["export-timeout"]["value"] == 1800.0
    assert commands["compare"]["format"]["value"] == "text"
    assert commands["compare"]["data"]["value"] is None


def test_precedence_is_flag_environment_file(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    # The error names the precision that took effect.
    refused = "unknown precision"
    write('[convert]\nprecision = "file8"\n')
    assert f"{refused} 'file8'" in cli("convert", DIGITS, "--no-compare").err
    monkeypatch.setenv("TRTOPT_CONVERT_PRECISION", "env8")
    assert f"{refused} 'env8'" in cli("convert", DIGITS, "--no-compare").err
    assert f"{refused} 'flag8'" in cli("convert", DIGITS, "--no-compare", "-p", "flag8").err


def test_config_shows_the_origin_of_each_value(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write('[convert]\nprecision = "int8"\nmethod = "entropy"\n')
    monkeypatch.setenv("TRTOPT_CONVERT_METHOD", "minmax")
    assert shown(cli, "convert", "precision") == ("int8", "file", "trtopt.toml")
    assert shown(cli, "convert", "method") == ("minmax", "environment", "TRTOPT_CONVERT_METHOD")
    assert shown(cli, "convert", "rest") == ("fp16", "default", "")
    lines = [line.split() for line in cli("config", "convert").out.splitlines()]
    assert ["precision", '"int8"', "trtopt.toml"] in lines
    assert ["method", '"minmax"', "TRTOPT_CONVERT_METHOD"] in lines
    assert ["rest", '"fp16"', "default"] in lines


def test_an_empty_variable_sets_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTOPT_CONVERT_PRECISION", "")
    assert shown(cli, "convert", "precision") == ("fp16", "default", "")


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("no", False)])
def test_a_switch_in_the_environment_is_turned_either_way(
    text: str, value: bool, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("[convert]\nno-compare = true\n")
    monkeypatch.setenv("TRTOPT_CONVERT_NO_COMPARE", text)
    assert shown(cli, "convert", "no-compare") == (value, "environment", "TRTOPT_CONVERT_NO_COMPARE")


def test_a_list_in_the_environment_is_written_as_in_a_shell(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTOPT_CONVERT_SHAPE", "'a b=1x3' c=2x4")
    assert shown(cli, "convert", "shape")[0] == ["a b=1x3", "c=2x4"]


def test_the_variable_is_named_after_the_flag_not_after_the_code(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTOPT_COMPARE_FROM", "run")
    assert shown(cli, "compare", "from") == ("run", "environment", "TRTOPT_COMPARE_FROM")


@pytest.mark.parametrize("key", ["calib-table", "calib_table"])
def test_a_key_is_written_with_dashes_or_underscores(key: str, cli: Cli) -> None:
    write(f'[convert]\n{key} = "t.json"\n')
    assert shown(cli, "convert", "calib-table") == ("t.json", "file", "trtopt.toml")


def test_a_table_in_pyproject_counts(cli: Cli) -> None:
    write(
        '[project]\nname = "x"\n[tool.trtopt.compare]\nworst = 5\nlayers = true\nkind = ["a=scores"]', "pyproject.toml"
    )
    assert shown(cli, "compare", "worst") == (5, "file", "pyproject.toml")
    assert shown(cli, "compare", "layers") == (True, "file", "pyproject.toml")
    assert shown(cli, "compare", "kind") == (["a=scores"], "file", "pyproject.toml")


def test_trtopt_toml_wins_over_pyproject_and_says_so(cli: Cli) -> None:
    write("[compare]\nworst = 1\n")
    write("[tool.trtopt.compare]\nworst = 5\nlayers = true\n", "pyproject.toml")
    done = cli("config", "compare", "--format", "json")
    assert done.err == "warning: [tool.trtopt] in pyproject.toml is ignored because trtopt.toml exists\n"
    flags = json.loads(done.out)["commands"]["compare"]
    assert flags["worst"]["value"] == 1
    assert flags["layers"]["origin"] == "default"


@pytest.mark.parametrize("text", ["[project]\ndependencies = ['trtopt']", "[tool.other]\nx = 1", "not = toml = at all"])
def test_a_pyproject_without_trtopt_is_ignored(text: str, cli: Cli) -> None:
    write(text, "pyproject.toml")
    done = cli("config", "compare", "--format", "json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["file"] is None


def test_a_run_can_take_all_its_flags_from_the_file(cli: Cli, here: Path) -> None:
    write(
        f"""
        [calibrate]
        calib = '{CALIB}'
        out = "run"
        [convert]
        precision = "int8"
        calib = '{CALIB}'
        data = '{EVAL}'
        shape = ["input=1x1x28x28:4x1x28x28:8x1x28x28"]
        gate = "sqnr=20"
        backend = "onnxruntime"
        out = "run"
        [compare]
        data = '{EVAL}'
        gate = "sqnr=20dB"
        out = "compared"
        format = "json"
        """
    )
    calibrated = cli("calibrate", DIGITS)
    assert calibrated.code == 0, calibrated.err
    assert "run/calibration.json" in calibrated.out  # paths are relative to the working directory
    converted = cli("convert", DIGITS)
    assert converted.code == 0, converted.err
    assert "sqnr" in converted.out
    assert json.loads(Path("run/manifest.json").read_text())
    compared = cli("compare", DIGITS, "run")
    assert compared.code == 0, compared.err
    assert json.loads(compared.out)["comparison"]["gates"][0]["metric"] == "sqnr"
    typed = cli("compare", DIGITS, "run", "--gate", "sqnr=200", "--format", "text")
    assert typed.code == 1
    assert "must be at least 200" in typed.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[convrt]", "unknown table [convrt]. Did you mean [convert]?"),
        ('["\\u001b[31m"]', "unknown table [\\x1b[31m]"),
        ("[xyz]", "unknown table [xyz]. Known tables: [convert], "),
        ("[convert]\nprecison = 'int8'", "unknown key 'precison' in [convert]. Did you mean precision?"),
        ("[convert]\nmodel = 'm.onnx'", "unknown key 'model' in [convert]"),
        ("[compare]\nhelp = true", "unknown key 'help' in [compare]"),
        ("precision = 'int8'", "precision is not inside a table: each command has its own. Write it below [convert]"),
        ("convert = 'int8'", "convert is not inside a table: each command has its own. Write it below [convert]"),
        ("[convert]\nskip-bad = true\nskip_bad = true", "skip-bad and skip_bad in [convert] are the same flag"),
        ("[compare]\nworst = '3'", "worst in [compare] is a string: it must be an integer"),
        ("[compare]\nworst = 3.5", "worst in [compare]"),
        ("[compare]\nworst = true", "worst in [compare] is true or false: it must be a single string or number"),
        ("[compare]\nworst = 99", "worst in [compare] cannot be '99'"),
        ("[compare]\nlayers = 1", "layers in [compare] is an integer: it must be true or false"),
        ("[compare]\nlayers = 'yes'", "layers in [compare] is a string: it must be true or false"),
        ("[compare]\nkind = 'a=scores'", "kind in [compare] is a string: it must be a list"),
        ("[compare]\nkind = [1]", "kind in [compare] is an integer: it must be a string"),
        ("[compare]\ngate = 5", "gate in [compare] is an integer: it must be a string"),
        ("[compare]\ngate = [1]", "gate in [compare] is an integer: it must be a string"),
        ("[compare]\ndata = ['a']", "data in [compare] is a list"),
        ("[compare.gate]", "gate in [compare] is a table"),
        ("[compare]\ngate = 2020-01-01", "gate in [compare] is a date or time"),
        ("[compare]\nformat = 'xml'", "format in [compare] cannot be 'xml'"),
        ("[compare]\nout = 1", "out in [compare] is an integer: it must be a string"),
        ("[convert]\nexport-timeout = '60'", "export-timeout in [convert] is a string: it must be a number"),
        ("[compare", "is not valid TOML"),
        ("a = " + "[" * 100_000, "is not valid TOML"),
    ],
)
def test_an_invalid_setting_is_an_error_that_names_the_file(text: str, said: str, cli: Cli) -> None:
    write(text)
    line = refusal(cli("doctor"))
    assert line.startswith("trtopt.toml")
    assert said in line


def test_a_number_may_be_written_without_a_point(cli: Cli) -> None:
    write("[convert]\nexport-timeout = 60\n")
    assert shown(cli, "convert", "export-timeout") == (60, "file", "trtopt.toml")


def test_a_file_that_cannot_be_read_is_refused(cli: Cli) -> None:
    Path("trtopt.toml").write_bytes(b"\xff\xfe")
    assert "is not valid TOML" in refusal(cli("config"))
    Path("trtopt.toml").unlink()
    Path("trtopt.toml").mkdir()
    assert "trtopt.toml cannot be read" in refusal(cli("config"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.trtopt.compar]", "unknown table [tool.trtopt.compar]. Did you mean [tool.trtopt.compare]?"),
        ("[tool]\ntrtopt = 5", "tool.trtopt is not a table"),
        ("trtopt is here", "is not valid TOML"),
    ],
)
def test_an_invalid_setting_in_pyproject_is_an_error_that_names_the_file(text: str, said: str, cli: Cli) -> None:
    write(text, "pyproject.toml")
    line = refusal(cli("config"))
    assert line.startswith("pyproject.toml")
    assert said in line


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "TRTOPT_CONVERT_PRECISON",
            "int8",
            "is unknown: it matches no flag. Did you mean TRTOPT_CONVERT_PRECISION?",
        ),
        ("TRTOPT_LOGGING", "1", "is unknown: it matches no flag. Write TRTOPT_<COMMAND>_<FLAG>"),
        ("TRTOPT_COMPARE_WORST", "many", "cannot be 'many'"),
        ("TRTOPT_COMPARE_LAYERS", "maybe", "cannot be 'maybe'"),
        ("TRTOPT_COMPARE_FORMAT", "xml", "cannot be 'xml'"),
        ("TRTOPT_CONVERT_SHAPE", "'a=1", "No closing quotation"),
    ],
)
def test_an_invalid_variable_is_an_error(
    name: str, value: str, said: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    line = refusal(cli("doctor"))
    assert line.startswith(f"environment variable {name}")
    assert said in line


def test_the_variable_for_tracebacks_is_accepted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTOPT_DEBUG", "1")
    assert cli("config").code == 0


@pytest.mark.parametrize(("word", "said"), [("compar", "Did you mean compare?"), ("zzz", "There are convert, ")])
def test_config_of_an_unknown_command_is_answered_with_the_nearest(word: str, said: str, cli: Cli) -> None:
    assert said in refusal(cli("config", word))


def test_help_and_completion_work_with_an_invalid_file(here: Path) -> None:
    write("[[[")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRTOPT_")}
    helped = subprocess.run(
        [sys.executable, "-m", "trtopt", "compare", "--help"], capture_output=True, text=True, check=True
    )
    assert "--gate" in helped.stdout
    completed = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'trtopt'\nfrom trtopt.cli.app import main\nmain()"],
        env=environment
        | {"_TRTOPT_COMPLETE": "complete_bash", "COMP_WORDS": "trtopt compare --allow", "COMP_CWORD": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout.split() == ["--allow-inconclusive"]


def test_a_toml_parser_is_imported_only_where_there_is_a_file(here: Path) -> None:
    code = (
        "import sys; sys.argv = ['trtopt', 'config', 'compare']\n"
        "from trtopt.cli.app import main\n"
        "try: main()\nexcept SystemExit as leave: assert not leave.code\n"
        "print('tomllib' in sys.modules or 'tomli' in sys.modules, 'numpy' in sys.modules)"
    )

    def last_line() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.splitlines()[-1]

    assert last_line() == "False False"
    write("[compare]\nworst = 1\n")
    assert last_line() == "True False"


def test_help_shows_long_words_in_full(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = cli("compare", "--help")
    assert "…" not in done.out
    whole = "".join(done.out.split())
    assert "top1=1%,cosine=0.99,OUTPUT:sqnr=20" in whole
    assert "package.module:function(reference,candidate,labels)->dict" in whole
