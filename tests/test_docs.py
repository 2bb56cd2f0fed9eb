"""The documentation: its commands run or parse, its examples run, its links lead somewhere, and its tables are true."""

from __future__ import annotations

import ast
import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT, Done, accepted

from trtopt.requires import require

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
SLOW = {"detection.md", "pytorch.md", "tensorflow.md", "text.md"}
"""Pages that start a framework several times: their commands are run by the nightly tests, and parsed by all."""

BLOCK = re.compile(
    r"^(?:<!-- needs: (?P<needs>[^>]+) -->\n)?```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is the content of, and what it needs that no checkout has."""

    language: str
    title: str
    needs: str
    text: str


@dataclass(frozen=True)
class Step:
    """A command, the output shown below it, and the exit code: that of `$ echo $?` after it, or 0."""

    command: str
    shown: str
    code: int


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text())
    return [Block(each["language"], each["title"] or "", each["needs"] or "", each["text"]) for each in found]


def steps(block: Block) -> list[Step]:
    """Return the commands of a `console` block, or of a `bash` block, which shows no output."""
    text = re.sub(r"\\\n *", "", block.text)
    if block.language == "bash":
        return [Step(line, "", 0) for line in text.splitlines() if line and not line.startswith("#")]
    if block.language != "console":
        return []
    found: list[Step] = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        if command == "echo $?":
            found[-1] = Step(found[-1].command, found[-1].shown, int(shown))
        else:
            found.append(Step(command, shown, 0))
    return found


def trtopt_lines(command: str) -> Iterator[str]:
    """Yield the command lines of trtopt in a line of a shell."""
    words: list[str] = []
    for word in [*shlex.split(command, comments=True), ";"]:
        if word in ("|", ">", ">>", "&&", "||", ";"):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and words[0] == "trtopt":
                yield shlex.join(words)
            words = []
        else:
            words.append(word)


def masked(text: str) -> str:
    """Return a text without its line breaks and numbers, which differ from run to run."""
    return NUMBER.sub("#", " ".join(text.split()))


def is_shown(shown: str, printed: str) -> bool:
    """Return whether a program printed what a page shows: parts between lines of `...`, in their order."""
    parts = [re.escape(masked(part)) for part in re.split(r"^\.\.\.$", shown, flags=re.MULTILINE)]
    return re.search(".*".join(parts), masked(printed)) is not None


ids = {"ids": lambda page: page.name}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, **ids)
PAGES_TO_RUN = [
    pytest.param(page, marks=pytest.mark.nightly) if page.name in SLOW else page
    for page in PAGES
    if any(steps(block) and not block.needs for block in blocks(page))
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the samples of the repository, in which all pages run, so that they share what is cached."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("samples", "calibration"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def shell(checkout: Path) -> Callable[[str], Done]:
    """Return a function that runs a line in a shell in the checkout; a line that was run before is not run again."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    unset = {"CI", "GITHUB_ACTIONS", "FORCE_COLOR"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PATH": path, "COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    known: dict[str, Done] = {}

    def run(line: str) -> Done:
        if line not in known:
            done = subprocess.run(
                ["bash", "-c", line], cwd=checkout, env=environment, capture_output=True, text=True, check=False
            )
            known[line] = Done(done.returncode, done.stdout, done.stderr)
        return known[line]

    return run


@pytest.mark.parametrize("page", PAGES_TO_RUN, **ids)
def test_the_commands_run(page: Path, checkout: Path, shell: Callable[[str], Done]) -> None:
    files = [block for block in blocks(page) if block.title]
    for block in files:
        (checkout / block.title).write_text(block.text)
    try:
        for step in [step for block in blocks(page) if not block.needs for step in steps(block)]:
            done = shell(step.command)
            assert done.code == step.code, f"{step.command}\n{done.out}{done.err}"
            assert is_shown(step.shown, f"{done.out}\n{done.err}"), f"{step.command}\n{done.out}{done.err}"
    finally:
        for block in files:
            (checkout / block.title).unlink()


@EVERY_PAGE
def test_every_command_parses(page: Path) -> None:
    for step in [step for block in blocks(page) for step in steps(block) if step.code != 2]:
        for line in trtopt_lines(step.command):
            try:
                accepted(line)
            except Exception as error:
                raise AssertionError(f"{line}: {error}") from error


def test_a_wrong_flag_in_a_page_would_be_found() -> None:
    block = Block("console", "", "gpu", "$ A=1 trtopt convert a.onnx --data b | tail\n$ trtopt bench c --no > d\n")
    lines = [line for step in steps(block) for line in trtopt_lines(step.command)]
    assert lines == ["trtopt convert a.onnx --data b", "trtopt bench c --no"]
    assert accepted(lines[0]) == "convert"
    with pytest.raises(Exception, match="--no"):
        accepted(lines[1])


def test_a_shown_line_that_was_not_printed_is_found() -> None:
    printed = "a  1.5 s\nb\nPASS: 4/4 gates\n"
    assert is_shown("", printed)
    assert is_shown("a 0.2 s b\n...\nPASS: 3/3 gates\n", printed)
    assert not is_shown("PASS: 3/3 gates\n...\na 0.2 s\n", printed)
    assert not is_shown("FAIL: 3/3 gates\n", printed)


@EVERY_PAGE
def test_every_extra_exists(page: Path) -> None:
    tomllib = require("tomllib" if sys.version_info >= (3, 11) else "tomli")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"'(?:\.|trtopt)\[([\w,-]+)\]", page.read_text())
    assert {extra for each in named for extra in each.split(",")} <= set(extras)


@EVERY_PAGE
def test_the_python_of_a_page_parses(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python" and not block.text.startswith(">>>"):
            ast.parse(block.text)


@pytest.mark.parametrize("page", [page for page in PAGES if "\n>>> " in page.read_text()], **ids)
def test_the_examples_in_python_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("samples", "calibration"):
        (tmp_path / name).symlink_to(ROOT / name)
    result = doctest.testfile(str(page), module_relative=False)
    assert (result.failed, result.attempted > 10) == (0, True)


@EVERY_PAGE
def test_the_toml_of_a_page_is_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trtopt.data.recipe import load_recipe

    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    tomllib = require("tomllib" if sys.version_info >= (3, 11) else "tomli")
    for block in blocks(page):
        if block.language == "toml" and {"image", "text"} & tomllib.loads(block.text).keys():
            Path("recipe.toml").write_text(block.text)
            assert load_recipe("recipe.toml")


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md"))], **ids)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not link.startswith("https://") and not (page.parent / link).exists()]
    assert not missing


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_the_figures_of_the_readme_are_in_the_pages_that_it_names() -> None:
    table = README.read_text().partition("## The proof")[2].partition("\n\n|")[2].partition("\n\n")[0]
    text = ""
    rows = [line.split("|") for line in table.splitlines()[2:]]
    assert len(rows) > 4
    for *_, measured, where, _ in rows:
        page = re.search(r"\(([\w/.]+)\)", where)
        text = (ROOT / page[1]).read_text() if page else text
        missing = [figure for figure in re.findall(r"\d+\.\d+|\d{3,}", measured) if figure not in text]
        assert not missing, measured


def test_the_table_of_exit_codes_has_all_of_them() -> None:
    from trtopt import errors

    rows = re.findall(r"^\| ([\d, ]+) \|", (DOCS / "exit-codes.md").read_text(), re.MULTILINE)
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(code) for row in rows for code in row.split(",")} == codes


def test_the_rules_of_placement_name_their_code() -> None:
    passes = ROOT / "trtopt/precision/passes"
    rows = re.findall(r"^\|.*\| (`.*) \|$", (DOCS / "placement.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)\.(\w+)`", row)]
    assert len(named) > 9
    for module, name in named:
        assert re.search(rf"^(def {name}\(|{name}\b)", (passes / f"{module}.py").read_text(), re.MULTILINE), name


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(DOCS))
    return require("hooks")


def test_the_reference_has_what_help_prints(hooks: object, cli: Callable[..., Done]) -> None:
    from trtopt.cli.commands import SUMMARIES

    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", hooks.commands(), re.MULTILINE | re.DOTALL))  # type: ignore[attr-defined]
    assert set(sections) == set(SUMMARIES)
    for name, section in sections.items():
        shown = " ".join(section.replace("\\", "").replace("|", " ").split())
        words = re.findall(r"--[a-z][\w-]+|\[default: [^\];]+", cli(name, "--help").out)
        assert len(words) >= 1
        for word in words:
            assert " ".join(word.split()) in shown, (name, word)


def test_the_reference_lists_the_choices(hooks: object) -> None:
    from trtopt.compare.kinds import kinds
    from trtopt.precision import precisions

    text = hooks.commands()  # type: ignore[attr-defined]
    assert f"`-p, --precision [{'|'.join(precisions())}]`" in text
    assert "\\|".join(kinds()) in text


def test_the_table_of_metrics_has_what_gate_help_prints(hooks: object, cli: Callable[..., Done]) -> None:
    printed = {line.split()[0] for line in cli("compare", "--gate", "help").out.splitlines()[1:]}
    shown = set(re.findall(r"^\| `(\w+)` \|", hooks.gates(), re.MULTILINE))  # type: ignore[attr-defined]
    assert shown == printed > {"top1", "cosine"}


def test_a_page_of_the_site_has_no_marker_left(hooks: object) -> None:
    text = hooks.on_page_markdown("<!-- needs: gpu -->\n[a](../LICENSE) [b](docs/ci.md)\n<!-- made: gates --> else")  # type: ignore[attr-defined]
    assert "<!--" not in text
    assert "[a](LICENSE) [b](ci.md)" in text
    assert "needs gpu" in text
    assert "else" not in text


def test_a_marker_within_a_sentence_is_a_quotation(hooks: object) -> None:
    text = "Write `<!-- needs: a GPU -->` or `<!-- made: gates -->`."
    assert hooks.on_page_markdown(text) == text  # type: ignore[attr-defined]
