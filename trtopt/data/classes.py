"""Names of a model's classes: in a file, or in a recipe. A label is the index of a class among the model's scores.

A file holds one name per line, in the order of the scores. A file that ends in .json holds a list of names in that
order, or says the index of each name: {"cat": 3}, or {"3": "cat"}.

Touches: reads the file that it is given.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtopt.data.dataset import Dataset
from trtopt.errors import DataError, UsageError

_FORMS = 'Write a list of names, {"name": index}, or {"index": "name"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """Class names: the `index` of each, and where they are from, in words (`source`).

    `complete` says that they are a list of all classes, in the order of the scores; else classes may lack a name.
    """

    source: str
    index: Mapping[str, int]
    complete: bool

    def find(self, name: str, where: str) -> int:
        """Return the index of a name.

        Raises:
            DataError: there is no such name; the nearest is named.
        """
        if name not in self.index:
            near = difflib.get_close_matches(name, self.index, n=1, cutoff=0.0)[0]
            raise DataError(
                f"{where}: {name} is not a class of {self.source}",
                fix=f"Did you mean {near}? Names must be equal, and a name is a whole line",
            )
        return self.index[name]


def read_classes(path: Path) -> Classes:
    """Return the class names in a file; see the module's text for its forms.

    Raises:
        UsageError: it cannot be read, holds no names, or holds one twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as class names", why=str(error)) from error
    if path.suffix.lower() == ".json":
        return _from_json(text, str(path))
    # A blank line would shift the index of every name after it, but for those at the end.
    return from_list(text.rstrip().split("\n") if text.strip() else [], str(path))


def from_list(names: Sequence[Any], source: str) -> Classes:
    """Return the classes of a list of all names, in the order of the model's scores.

    Raises:
        UsageError: there are none, one is blank or not text, or one is there twice.
    """
    return _classes([(name, place) for place, name in enumerate(names)], source, complete=True)


def score_count(row: Sequence[int]) -> int:
    """Return how many class scores a sample's row of that shape is, as [classes] or [classes, 1, 1]; 0 for another."""
    return math.prod(row) if sum(side > 1 for side in row) == 1 else 0


def check_count(dataset: Dataset, scores: Mapping[str, int]) -> None:
    """Refuse labels that are places in a list of another length than the model's scores: they are of other classes.

    `scores` are the numbers of scores of the outputs that may be class scores, by name, 0 for one that is none.

    Raises:
        DataError: no output has a score for each class of the list.
    """
    found = {name: count for name, count in scores.items() if count}
    if dataset.class_list is None or not found or dataset.class_list.count in found.values():
        return
    counts = ", ".join(f"output {name} has {count} scores" for name, count in found.items())
    raise DataError(
        f"{dataset.source}: the labels do not fit the model",
        why=f"they are places among {dataset.class_list.count} {dataset.class_list.what}, and {counts}",
        fix="Give --classes FILE with the name of each score, in order, or with the index of each name (.json); where "
        "no output is class scores, add --kind OUTPUT=values",
    )


def _from_json(text: str, source: str) -> Classes:
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: cannot be read as JSON", why=str(error)[:200]) from error
    if isinstance(found, list):
        return from_list(found, source)
    if isinstance(found, dict) and all(type(index) is int for index in found.values()):
        return _classes(list(found.items()), source, complete=False)
    if isinstance(found, dict) and all(is_index(index) for index in found):
        return _classes([(name, int(index)) for index, name in found.items()], source, complete=False)
    raise UsageError(f"{source}: does not hold class names", fix=_FORMS)


def is_index(text: str) -> bool:
    """Return whether a text is an index: digits, and not so many that no model has such a class."""
    return text.isascii() and text.isdigit() and len(text) <= 9


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found


def _classes(pairs: Sequence[tuple[Any, int]], source: str, *, complete: bool) -> Classes:
    if not pairs:
        raise UsageError(f"{source}: holds no class names", fix="Write one name per line, in the order of the scores")
    index: dict[str, int] = {}
    names: dict[int, str] = {}
    for name, place in pairs:
        if not isinstance(name, str) or not name.strip():
            what = "is blank" if isinstance(name, str) else f"is {name!r}, which is not text"
            raise UsageError(f"{source}: the name of class {place} {what}", fix="Name every class, or leave none out")
        name = name.strip()
        if place < 0:
            raise UsageError(f"{source}: the index of {name} is {place}", why="the first score has index 0")
        if name in index:
            raise UsageError(f"{source}: {name} is there twice", why=f"as class {index[name]} and as class {place}")
        if place in names:
            raise UsageError(f"{source}: two classes have index {place}", why=f"{names[place]} and {name}")
        index[name], names[place] = place, name
    return Classes(source=source, index=index, complete=complete)
