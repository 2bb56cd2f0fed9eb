"""The report as one HTML page that needs nothing else: no network, no script, no font, no picture beside it.

What the page says is in `templates/`, what it picks from the report in `picked`, how that is drawn in `charts` and
`graph_charts`. Names come from untrusted files: every value is cut to length and loses its control characters, then
Jinja2 escapes it, and the page's own Content-Security-Policy forbids scripts and requests whatever it holds.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from trtopt.report import benchmark, charts, graph_charts, headline, picked, words
from trtopt.report.svg import clipped
from trtopt.types import Report

LIMIT = 1 << 20
"""No page has more bytes."""

_ROW_BYTES = 110


@dataclass(frozen=True, slots=True)
class Cut:
    """The first of many, and how many more there are."""

    rows: Sequence[object]
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much of a report the page has room for: characters of a name, of a name in a list of many, and of a sentence;
    rows of a table, and bytes of a list that is as long as the graph.
    """

    name: int
    listed: int
    sentence: int
    rows: int
    list_bytes: int

    def clean(self, value: object) -> object:
        """A value as text without control characters and not too long; markup of our own as it is."""
        return value if isinstance(value, Markup) else clipped(str(value), self.name)

    def short(self, text: str) -> str:
        """A name in a list of many."""
        return clipped(text, self.listed)

    def prose(self, text: str) -> Markup:
        """A sentence, which may be longer than a name."""
        return escape(clipped(text, self.sentence))

    def most(self, rows: Sequence[object], count: int | None = None) -> Cut:
        """The first rows of a table."""
        count = self.rows if count is None else min(count, self.rows)
        return Cut(rows[:count], max(len(rows) - count, 0))

    def within(self, rows: Sequence[object], *names: str) -> Cut:
        """As many rows of a long list as there is room for; `names` are the fields that are written."""
        used, kept = 0, 0
        for row in rows:
            used += _ROW_BYTES + sum(len(escape(self.short(getattr(row, name))).encode()) for name in names)
            if used > self.list_bytes:
                break
            kept += 1
        return Cut(rows[:kept], len(rows) - kept)


ROOMS = (
    Room(name=160, listed=80, sentence=600, rows=40, list_bytes=250_000),
    Room(name=40, listed=30, sentence=100, rows=10, list_bytes=50_000),
)
"""The second is for names of absurd lengths: with it a page cannot reach `LIMIT`."""


def render(report: Report) -> str:
    """The page, `LIMIT` bytes at most; parts that the report does not have are left out of it."""
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
        loader=PackageLoader("trtopt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=room.clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for module in (benchmark, charts, graph_charts, headline, picked, words):
        found.globals[module.__name__.rpartition(".")[2]] = module
    found.globals |= {"most": room.most, "within": room.within}
    found.filters |= {"short": room.short, "prose": room.prose, "seconds": picked.seconds}
    return found
