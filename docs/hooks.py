"""The site of the documentation: a hook of MkDocs, which `mkdocs.yml` names.

Pages in `docs/` and files outside it link to each other as they do in the repository; here those links are made to fit
the site. A line in a page, `<!-- made: commands -->` and what follows it, is replaced by what the program says about
itself, so that it cannot be out of date. A comment before a block, `<!-- needs: gpu -->`, becomes visible.

Touches: reads files of the repository; writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "action.yml",
    "calibration/recipes/bert.toml",
    "calibration/recipes/grayscale.toml",
    "calibration/recipes/imagenet.toml",
    "samples/ci/Jenkinsfile",
    "samples/ci/github.yml",
    "samples/ci/gitlab-ci.yml",
)
"""Files outside `docs/` that are pages of the site, or that pages link to."""

_LINK_OUT = re.compile(r"(\]\()(?:\.\./|docs/)")
_MADE = re.compile(r"^<!-- made: (\w+) -->.*", re.MULTILINE)
_NEEDS = re.compile(r"^<!-- needs: ([^>]+) -->", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside `docs/` to the site."""
    from mkdocs.structure.files import File

    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the text of a page with links that fit the site, and with all that is made from the program."""
    text = _LINK_OUT.sub(r"\1", markdown)
    text = _NEEDS.sub(r'<p class="needs" markdown>needs \1</p>', text)
    return _MADE.sub(lambda found: MADE[found[1]](), text)


def commands() -> str:
    """Return a section for each command: its help, and all its flags with their choices and defaults."""
    import typer

    from trtopt.cli.commands import app

    group: Any = typer.main.get_command(app)
    root = group.make_context("trtopt", [], resilient_parsing=True)
    sections = []
    for name in group.list_commands(root):
        command = group.get_command(root, name)
        context = command.make_context(name, [], parent=root, resilient_parsing=True)
        groups = _Groups()
        command.format_options(context, groups)
        usage = " ".join([f"trtopt {name}", *command.collect_usage_pieces(context)])
        sections.append(f"## {name}\n\n{_help(command.help)}\n\n```text\n{usage}\n```\n\n{groups.text}")
    return "\n".join(sections)


def gates() -> str:
    """Return the table of metrics that `trtopt compare --gate help` prints."""
    from trtopt.compare.reference import HEAD, rows

    return _table(HEAD, [[cells[0].join("``"), *cells[1:4], cells[4].join("``"), cells[5]] for cells in rows()])


MADE: dict[str, Callable[[], str]] = {"commands": commands, "gates": gates}
"""Function whose text replaces `<!-- made: NAME -->`, by name."""


class _Groups:
    """Formatter of a help page that writes a Markdown list of flags under the heading of each group."""

    def __init__(self) -> None:
        self.text = ""

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.text += f"**{name}**\n\n"
        yield

    def write_dl(self, rows: Sequence[tuple[str, str]]) -> None:
        self.text += "".join(f"`{name}`\n:   {_escaped(text)}\n\n" for name, text in rows)


def _help(text: str) -> str:
    """Return the help of a command; an example in it becomes a block."""
    paragraphs = text.replace("\b\n", "").split("\n\n")
    return "\n\n".join(
        "```console\n" + "\n".join(f"$ {line.strip()}" for line in each.splitlines()[1:]) + "\n```"
        if each.startswith("Example:")
        else _escaped(each)
        for each in paragraphs
    )


def _escaped(text: str) -> str:
    """Return a text of the program with nothing in it that Markdown would take for markup."""
    return re.sub(r"([\\*_<>|\[\]])", r"\\\1", text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
