"""Report as one self-contained HTML page: no network, fonts or files beside it.

The text of the page is in `page/templates/`; `picked`, `evidence` and `blocks` select from the report, `charts` and
`graph_charts` draw. Names come from untrusted files: every value is cut to length and stripped of control characters,
then Jinja2 escapes it, and the page's Content-Security-Policy forbids requests and every script but its own, which
sorts tables.

Touches: nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from trtopt.report.page import (
    benchmark,
    blocks,
    charts,
    engine_layers,
    evidence,
    graph_charts,
    headline,
    picked,
    steps,
    tuned,
    words,
)
from trtopt.report.page.svg import clipped
from trtopt.types import Report

LIMIT = 1 << 20
"""Maximum size of a page in bytes."""

_ROW_BYTES = 110


@dataclass(frozen=True, slots=True)
class Cut:
    """First rows of a list, and the number of rows left out."""

    rows: Sequence[object]
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Space that a page has for parts of a report.

    The lengths are in characters: of a name, of a name in a long list, and of a sentence. `rows` limits tables, and
    `list_bytes` lists that are as long as the graph. `images` is false if there is no space for images.
    """

    name: int
    listed: int
    sentence: int
    rows: int
    list_bytes: int
    images: bool

    def clean(self, value: object) -> object:
        """Return a value as text without control characters, cut to length; our own markup is returned unchanged."""
        return value if isinstance(value, Markup) else clipped(str(value), self.name)

    def short(self, text: str) -> str:
        """Shorten a name in a long list."""
        return clipped(text, self.listed)

    def prose(self, text: str) -> Markup:
        """Shorten a sentence, which may be longer than a name."""
        return escape(clipped(text, self.sentence))

    def whole(self, command: str) -> Markup:
        """Return a command, which cannot be pasted if it is cut: it may be longer than a sentence."""
        return escape(clipped(command, 8 * self.sentence))

    def most(self, rows: Sequence[object], count: int | None = None) -> Cut:
        """Return the first rows of a table."""
        count = self.rows if count is None else min(count, self.rows)
        return Cut(rows[:count], max(len(rows) - count, 0))

    def within(self, rows: Sequence[object], *names: str) -> Cut:
        """Return as many rows of a long list as fit; `names` are the fields that are written."""
        used, kept = 0, 0
        for row in rows:
            used += _ROW_BYTES + sum(len(escape(self.short(getattr(row, name))).encode()) for name in names)
            if used > self.list_bytes:
                break
            kept += 1
        return Cut(rows[:kept], len(rows) - kept)


ROOMS = (
    Room(name=160, listed=80, sentence=600, rows=40, list_bytes=250_000, images=True),
    Room(name=40, listed=30, sentence=100, rows=10, list_bytes=50_000, images=False),
)
"""Limits for normal reports, and for names of extreme length; with the latter a page cannot exceed `LIMIT`."""


def render(report: Report) -> str:
    """Return the page, at most `LIMIT` bytes; parts that the report does not have are left out."""
    page = ""
    for room in ROOMS:
        template = _environment(room).get_template("report.html.jinja")
        page = template.render(report=report, judged=picked.judged(report), sections=picked.sections(report)) + "\n"
        if len(page.encode()) <= LIMIT:
            break
    return page


@cache
def _environment(room: Room) -> Environment:
    found = Environment(
        loader=PackageLoader("trtopt.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=room.clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    modules = (benchmark, blocks, charts, engine_layers, evidence, graph_charts, headline, picked, steps, tuned, words)
    for module in modules:
        found.globals[module.__name__.rpartition(".")[2]] = module
    script = Path(__file__).with_name("page").joinpath("templates/sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found.globals |= {"script": Markup(script), "script_digest": Markup(f"sha256-{digest}")}
    found.globals |= {"most": room.most, "within": room.within, "images": room.images}
    found.filters |= {"short": room.short, "prose": room.prose, "whole": room.whole, "seconds": picked.seconds}
    return found
