"""Partial results: one zip file per shard, with what was computed and what it was computed from.

Its member `partial.json` is the `Header`. Nothing in a partial result is unpickled.

Touches: the files that it is asked to read and write.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from trtopt.errors import StoreError, UsageError
from trtopt.shards.shard import Shard
from trtopt.writing import write_whole

SUFFIX = ".partial"
SCHEMA = "trtopt.partial"
SCHEMA_VERSION = 1

_HEADER = "partial.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Date of every member: equal results are equal files."""

_WORDS = {
    "model": "another model",
    "data": "another data set",
    "calib": "other calibration data",
    "statistics": "other statistics",
    "trtopt": "another version of trtopt",
}

Write = Callable[[IO[bytes]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Description of a partial result.

    Attributes:
        kind: the command that wrote it.
        shard: the part of the whole.
        key: what must be the same in all partial results of one whole: digests and options, by name.
        plan: what the command was asked to do, as JSON values; `trtopt merge` completes it.
        facts: what was noted about this part before it was computed, as JSON values.
    """

    kind: str
    shard: Shard
    key: Mapping[str, Any]
    plan: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """A partial result in a file."""

    path: Path
    header: Header

    @contextmanager
    def member(self, name: str) -> Iterator[IO[bytes]]:
        """Open a member of the file. The checksum is verified when it is read to its end.

        Raises:
            StoreError: it is missing or damaged.
        """
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(name) as file:
                yield file
        except (OSError, KeyError, EOFError, zipfile.BadZipFile, ValueError) as error:
            raise damaged(self.path, str(error)) from error

    def read(self, name: str) -> bytes:
        """Return a member of the file.

        Raises:
            StoreError: it is missing or damaged.
        """
        with self.member(name) as file:
            return file.read()

    def members(self) -> list[str]:
        """Return the names of the members, in order, without the header."""
        with zipfile.ZipFile(self.path) as archive:
            return [name for name in archive.namelist() if name != _HEADER]


def fill_partial(file: IO[bytes], header: Header, members: Iterable[tuple[str, Write]]) -> None:
    """Write a partial result to a binary file.

    Args:
        file: the file.
        header: what it is.
        members: the name of each member, and a function that writes it to a binary file.
    """
    text = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "kind": header.kind,
        "shard": [header.shard.number, header.shard.count],
        "key": dict(header.key),
        "plan": dict(header.plan),
        "facts": dict(header.facts),
    }
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(_HEADER, _EPOCH), json.dumps(text, indent=1))
        for name, write in members:
            with archive.open(zipfile.ZipInfo(name, _EPOCH), "w", force_zip64=True) as member:
                write(member)


def write_partial(path: Path, header: Header, members: Iterable[tuple[str, Write]]) -> None:
    """Write a partial result to a file, completely or not at all; see `fill_partial`.

    Raises:
        OSError: the file cannot be written.
    """
    write_whole(path, lambda file: fill_partial(file, header, members))


def partial_name(shard: Shard) -> str:
    """Return the end of the name of a shard's file, such as `1-of-4.partial`."""
    return f"{shard.number}-of-{shard.count}{SUFFIX}"


def is_there(path: Path, header: Header) -> bool:
    """Return whether the file is the partial result of that shard, of the same whole."""
    if not path.exists():
        return False
    try:
        found = read_partial(path).header
    except UsageError:
        return False
    return (found.kind, found.shard, dict(found.key)) == (header.kind, header.shard, dict(header.key))


def read_partial(path: Path) -> Partial:
    """Return a partial result.

    Raises:
        UsageError: the file does not exist, or is not a partial result of this version of trtopt.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            text = json.loads(archive.read(_HEADER))
        if text["schema"] != SCHEMA or text["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"its schema is {text['schema']} {text['schema_version']}")
        number, count = text["shard"]
        header = Header(
            kind=text["kind"],
            shard=Shard(int(number), int(count)),
            key=dict(text["key"]),
            plan=dict(text["plan"]),
            facts=dict(text["facts"]),
        )
        if not 1 <= header.shard.number <= header.shard.count:
            raise ValueError(f"it is shard {header.shard}")
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist", fix="Give the files that --shard wrote") from error
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, RecursionError) as error:
        why = "a folder" if path.is_dir() else str(error) or type(error).__name__
        raise UsageError(
            f"{path} is not a partial result", why=why, fix="Give the files that --shard wrote, with this trtopt"
        ) from error
    return Partial(path=path, header=header)


def read_whole(paths: Sequence[Path]) -> list[Partial]:
    """Return the partial results of one whole, in the order of their shards.

    Raises:
        UsageError: one is of another command, model, data set or division, a shard is there twice, or one is missing.
    """
    if not paths:
        raise UsageError("nothing to merge", fix="Give the files that --shard wrote")
    first, *others = partials = [read_partial(path) for path in paths]
    for other in others:
        _check_alike(first, other)
    by_shard: dict[Shard, Partial] = {}
    for partial in partials:
        twin = by_shard.setdefault(partial.header.shard, partial)
        if twin is not partial:
            what = f"{partial.path} is shard {partial.header.shard} a second time"
            raise UsageError(what, why=f"{twin.path} is the same shard", fix="Give every shard once")
    count = first.header.shard.count
    missing = [f"{number}/{count}" for number in range(1, count + 1) if Shard(number, count) not in by_shard]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UsageError(f"shard {shown} is missing", why=f"{len(by_shard)} of {count} are given", fix="Run it, too")
    return [by_shard[shard] for shard in sorted(by_shard)]


def check_key(partials: Sequence[Partial], key: Mapping[str, Any]) -> None:
    """Raise UsageError unless partial results are of what the key describes: of this model and this data set."""
    first = partials[0]
    for name in dict.fromkeys((*key, *first.header.key)):
        if first.header.key.get(name) != key.get(name):
            raise UsageError(
                f"{first.path} is of {_WORDS.get(name, f'another {name}')} than is found here",
                why=f"{name} {str(first.header.key.get(name))[:24]} is not {str(key.get(name))[:24]}",
                fix="Merge where the model and the data are those of the shards",
            )


def damaged(path: Path, why: str) -> StoreError:
    """Return the error about a partial result that cannot be read."""
    return StoreError(f"{path} is damaged", why=why, fix="Copy it again, or run its shard again")


def _check_alike(first: Partial, other: Partial) -> None:
    """Raise UsageError unless two partial results belong to one whole."""
    a, b = first.header, other.header
    if a.kind != b.kind:
        raise UsageError(f"{other.path} is of another command", why=f"it is of {b.kind}, {first.path} of {a.kind}")
    for name in dict.fromkeys((*a.key, *b.key)):
        if a.key.get(name) != b.key.get(name):
            word = _WORDS.get(name, f"another {name}")
            values = [str(key.get(name))[:24] for key in (b.key, a.key)]
            raise UsageError(
                f"{other.path} is of {word} than {first.path}",
                why=f"{name} {values[0]} is not {values[1]}",
                fix="Merge the shards of one run",
            )
    if a.shard.count != b.shard.count:
        what = f"{other.path} is of another division than {first.path}"
        raise UsageError(what, why=f"it is shard {b.shard}, not one of {a.shard.count}")
