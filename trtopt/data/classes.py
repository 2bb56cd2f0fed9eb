"""Names of a model's classes, from a file or a recipe. A label is the index of a class among the model's scores.

A text file contains one name per line, in the order of the scores. A .json file contains a list of names in that order,
or maps names to indices, {"cat": 3}, or indices to names, {"3": "cat"}.

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
    """The `index` of each class name, and a description of where the names come from (`source`).

    `complete` is true for a list of all classes in the order of the scores. Otherwise some classes may be unnamed.
    """

    source: str
    index: Mapping[str, int]
    complete: bool

    def find(self, name: str, where: str) -> int:
        """Return the index of a name.

        Raises:
            DataError: the name is unknown; the message suggests the nearest one.
        """
        if name not in self.index:
            near = difflib.get_close_matches(name, self.index, n=1, cutoff=0.0)[0]
            raise DataError(
                f"{where}: {name} is not a class of {self.source}",
                fix=f"Did you mean {near}? Names must match exactly, and a name is a whole line",
            )
        return self.index[name]


def read_classes(path: Path) -> Classes:
    """Return the class names in a file; the module's docstring describes the formats.

    Raises:
        UsageError: the file cannot be read, contains no names, or repeats one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as class names", why=str(error)) from error
    if path.suffix.lower() == ".json":
        return _from_json(text, str(path))
    # Blank lines at the end are harmless; one in between would shift the index of every name after it.
    return from_list(text.rstrip().split("\n") if text.strip() else [], str(path))


def from_list(names: Sequence[Any], source: str) -> Classes:
    """Return the classes of a list of all names, in the order of the model's scores.

    Raises:
        UsageError: the list is empty, or a name is blank, not text, or repeated.
    """
    return _classes([(name, place) for place, name in enumerate(names)], source, complete=True)


def score_count(row: Sequence[int]) -> int:
    """Return the number of class scores in a row of shape [classes] or [classes, 1, 1], and 0 for any other shape."""
    return math.prod(row) if sum(side > 1 for side in row) == 1 else 0


def check_count(dataset: Dataset, scores: Mapping[str, int]) -> None:
    """Check that the labels index a list of as many classes as the model has scores.

    Args:
        dataset: the labelled samples.
        scores: the number of class scores of each output, by name; 0 for an output that is not class scores.

    Raises:
        DataError: no output has a score for each class of the list, so the labels belong to other classes.
    """
    scored = {name: count for name, count in scores.items() if count}
    if dataset.class_list is None or not scored or dataset.class_list.count in scored.values():
        return
    counts = ", ".join(f"output {name} has {count} scores" for name, count in scored.items())
    raise DataError(
        f"{dataset.source}: the labels do not fit the model",
        why=f"they are indices into {dataset.class_list.count} {dataset.class_list.what}, and {counts}",
        fix="Give --classes FILE with the name of each score, in order, or with the index of each name (.json); if "
        "the output is not class scores, add --kind OUTPUT=values",
    )


def _from_json(text: str, source: str) -> Classes:
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: cannot be read as JSON", why=str(error)[:200]) from error
    if isinstance(document, list):
        return from_list(document, source)
    if isinstance(document, dict) and all(type(index) is int for index in document.values()):
        return _classes(list(document.items()), source, complete=False)
    if isinstance(document, dict) and all(is_index(index) for index in document):
        return _classes([(name, int(index)) for index, name in document.items()], source, complete=False)
    raise UsageError(f"{source}: does not contain class names", fix=_FORMS)


def is_index(text: str) -> bool:
    """Return whether a text is a class index: 1 to 9 ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= 9


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict; raise ValueError for a repeated key, which `json` would accept."""
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"{key!r} appears twice")
        unique[key] = value
    return unique


def _classes(pairs: Sequence[tuple[Any, int]], source: str, *, complete: bool) -> Classes:
    if not pairs:
        raise UsageError(f"{source}: contains no class names", fix="Write one name per line, in score order")
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
            raise UsageError(f"{source}: {name} appears twice", why=f"as class {index[name]} and as class {place}")
        if place in names:
            raise UsageError(f"{source}: two classes have index {place}", why=f"{names[place]} and {name}")
        index[name], names[place] = place, name
    return Classes(source=source, index=index, complete=complete)
