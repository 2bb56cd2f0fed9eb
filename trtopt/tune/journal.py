"""A journal of evaluations: one JSON line each, appended and flushed, so that a killed run loses at most the last one.

The first line holds the digest of what the evaluations depend on. A journal of anything else is begun anew.

Touches: the journal's file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST = 1 << 24
"""Bytes of the largest journal. What follows is evaluated, but not recorded."""


class Journal:
    """The evaluations that a file records, each under its question: a text. `fresh` begins it anew."""

    def __init__(self, path: Path, key: str, *, fresh: bool = False) -> None:
        self._path = path
        self._known: dict[str, Mapping[str, Any]] = {}
        head = {"key": key}
        lines = [] if fresh else _lines(path)
        if not lines or lines[0] != head:
            lines = [head]
        for line in lines[1:]:
            self._known[str(line["question"])] = line["answer"]
        # Written again without a torn last line, so that what is appended begins on a line of its own.
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        temporary.replace(path)
        self._bytes = path.stat().st_size

    def __len__(self) -> int:
        return len(self._known)

    def find(self, question: str) -> Mapping[str, Any] | None:
        """Return the recorded answer; None if there is none."""
        return self._known.get(question)

    def record(self, question: str, answer: Mapping[str, Any]) -> None:
        """Append an answer of JSON values, and wait until it is on the disk."""
        self._known[question] = answer
        line = f"{json.dumps({'question': question, 'answer': answer})}\n".encode()
        if self._bytes + len(line) > LARGEST:
            return
        with self._path.open("ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self._bytes += len(line)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the entries up to the first line that is not complete."""
    entries: list[dict[str, Any]] = []
    try:
        text = path.read_bytes()[:LARGEST]
    except OSError:
        return []
    for line in text.split(b"\n")[:-1]:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        whole = isinstance(entry, dict) and ({"key"} == entry.keys() or {"question", "answer"} == entry.keys())
        if not whole or not isinstance(entry.get("answer", {}), dict):
            break
        entries.append(entry)
    return entries if entries and "key" in entries[0] and all("answer" in each for each in entries[1:]) else []
