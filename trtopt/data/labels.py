"""Class labels of a folder of images, from a CSV file or from the names of subfolders.

A line of the CSV file is FILE,LABEL: an image's name relative to the folder, and the index of its class, or the name of
its class if class names are given (`classes`). The first line is a header unless it begins with an image's name.
Every image has one line. A `labels.csv` inside the folder is used by default.

Without a CSV file, the top-level subfolder of an image names its class. The label is
    the index of that name in the given class names;
    without class names, the subfolder's name itself if all subfolders are numbers;
    otherwise the subfolder's index among the sorted names.

Touches: reads the CSV file; lists the folder.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trtopt.data.classes import Classes, is_index
from trtopt.data.dataset import ClassList
from trtopt.data.images import SUFFIXES
from trtopt.errors import DataError
from trtopt.wording import counted

FILE_NAME = "labels.csv"
"""Name of the file with labels inside a folder of images."""

_SHOWN = 5
_FORM = "A line is FILE,LABEL: an image's name relative to the folder, and the index or the name of its class"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelling:
    """The user's flags about labels: the names of the model's classes, and a CSV file."""

    classes: Classes | None = None
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The class index of each image (None without labels), the list that they index, and remarks for the user.

    `names` are those of classes by index, as far as they are known.
    """

    indices: tuple[int, ...] | None
    class_list: ClassList | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def label(folder: Path, names: Sequence[str], labelling: Labelling) -> Labels:
    """Return the labels of the images `names`, which are relative to the folder.

    Raises:
        DataError: the CSV file cannot be read or is wrong, a subfolder is not among the class names, or only some of
            the images are in subfolders.
    """
    labels = _labels(folder, names, labelling)
    if labelling.classes is None:
        return labels
    return replace(labels, names={place: name for name, place in labelling.classes.index.items()})


def _labels(folder: Path, names: Sequence[str], labelling: Labelling) -> Labels:
    file = labelling.file or (folder / FILE_NAME if (folder / FILE_NAME).is_file() else None)
    if file is not None:
        return _from_file(file, folder, names, labelling.classes)
    loose = [name for name in names if "/" not in name]
    if len(loose) == len(names):
        if labelling.classes is None:
            return Labels(indices=None)
        note = f"the images have no labels: the class names of {labelling.classes.source} only appear in the report"
        return Labels(indices=None, warnings=(note,))
    if loose:
        raise DataError(
            f"{folder}: some images are in class subfolders and some are not",
            why=f"{loose[0]} is directly in the folder",
            fix="Put either all images or none into subfolders",
        )
    return _from_folders(folder, names, labelling.classes)


def _from_folders(folder: Path, names: Sequence[str], classes: Classes | None) -> Labels:
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    tops = [name.partition("/")[0] for name in names]
    empty = sorted(set(folders).difference(tops))
    notes: list[str] = []
    warnings = [f"no samples of class {_shown(empty)}: no images in the subfolder"] if empty else []
    class_list, named = None, {}
    if classes is not None:
        index = {name: classes.find(name, str(folder)) for name in folders}
        mapping = ", ".join(f"{name}={place}" for name, place in list(index.items())[:_SHOWN])
        notes.append(f"labels are the indices of the subfolders' names in {classes.source} ({mapping}{_more(folders)})")
        class_list = _list_of(classes)
    elif all(is_index(name) for name in folders):
        index = {name: int(name) for name in folders}
    elif len(folders) == 1:
        note = f"all images are in one subfolder, {folders[0]}, so its name is not used as a label"
        return Labels(indices=None, notes=(note,))
    else:
        index = {name: place for place, name in enumerate(folders)}
        mapping = ", ".join(f"{place}={name}" for name, place in list(index.items())[:_SHOWN])
        notes.append(
            f"labels are the indices of the {len(folders)} subfolders in sorted order ({mapping}{_more(folders)})"
        )
        class_list = ClassList(count=len(folders), what=f"class folders ({_shown(folders)})")
        named = dict(enumerate(folders))
    return Labels(
        indices=tuple(index[top] for top in tops),
        class_list=class_list,
        names=named,
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def _from_file(path: Path, folder: Path, names: Sequence[str], classes: Classes | None) -> Labels:
    labels: dict[str, int] = {}
    known = frozenset(names)
    by_name = False
    for line, name, text in _lines(path):
        where = f"{path}:{line}"
        if name not in known:
            near = difflib.get_close_matches(name, names, n=1)
            fix = f"Did you mean {near[0]}?" if near else "Names are relative to the folder of images"
            raise DataError(f"{where}: {name} is not an image in {folder}", fix=fix)
        if name in labels:
            raise DataError(f"{where}: {name} already has a label", fix="Keep one line per image")
        by_name |= classes is not None and text in classes.index
        labels[name] = _index(text, classes, where)
    missing = [name for name in names if name not in labels]
    if missing:
        raise DataError(
            f"{path}: no label for {len(missing)} of {len(names)} images",
            why=f"{_shown(missing)} in {folder}",
            fix="Add a line for each image, or remove those without a label",
        )
    return Labels(
        indices=tuple(labels[name] for name in names),
        class_list=_list_of(classes) if classes and by_name else None,
        notes=(f"labels are read from {path}",),
    )


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the line number, the image's name and the label text of every line but the header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, skipinitialspace=True, strict=True)
            first = True
            for row in rows:
                if not any(field.strip() for field in row):
                    continue
                if len(row) != 2:
                    columns = counted(len(row), "column")
                    raise DataError(f"{path}:{rows.line_num}: {columns} instead of 2", fix=_FORM)
                name, text = (field.strip() for field in row)
                if not first or Path(name).suffix.lower() in SUFFIXES:
                    yield rows.line_num, Path(name).as_posix(), text
                first = False
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV file of labels", why=str(error), fix=_FORM) from error


def _index(text: str, classes: Classes | None, where: str) -> int:
    """Return the class index that a label's text gives, as a class name or as a number."""
    if classes is not None and text in classes.index:
        return classes.index[text]
    if is_index(text):
        if classes is not None and int(text) not in classes.index.values():
            raise DataError(f"{where}: no class of {classes.source} has index {text}")
        return int(text)
    if classes is not None and text:
        return classes.find(text, where)
    what = f"label {text!r} is not a class index (an integer from 0)" if text else "no label"
    raise DataError(f"{where}: {what}", fix="Give an index, or the class names with --classes FILE")


def _list_of(classes: Classes) -> ClassList | None:
    """Return the list that labels index, if the names cover all classes."""
    return ClassList(count=len(classes.index), what=f"names in {classes.source}") if classes.complete else None


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + _more(names)


def _more(names: Sequence[str]) -> str:
    return ", ..." if len(names) > _SHOWN else ""
