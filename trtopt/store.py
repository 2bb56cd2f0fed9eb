"""Content-addressed store of stage results: one directory per run, each result keyed by the digest of its inputs.

    run directory
      manifest.json      for each stage: its key, the inputs of the key, digests of its files, its result, its time;
                         for each page: the key and the digest of its text
      .lock              held while a run writes; a second run waits
      .tmp-*             files of a running stage: renamed into place at its end, deleted by the next run otherwise

A stage whose key and files are unchanged does not run again. Files are renamed into place first and the manifest is
written last, so that a killed run leaves a manifest that lists less than was done, never more.

Touches: the run directory only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from trtopt import __version__, times
from trtopt.code_digest import code_digest
from trtopt.codec import decode, encode
from trtopt.counts import network_runs
from trtopt.events import Emit, StageCached, StageFinished, StageStarted, Warned, silent
from trtopt.manifest import check_own, file_digest, read_manifest, relocate
from trtopt.marks import marked
from trtopt.rundir import ROOT, DefaultDir, claimed
from trtopt.types import StageOutcome
from trtopt.writing import cannot_write, own_errors, writing

T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)

JOURNAL = "tune.jsonl"
"""Journal of a search in a run directory. It is not the file of a stage: it outlives a run that is stopped."""


class RunStore:
    """Run directory that is open and locked. `open_store` creates it.

    If it is `fresh`, results of earlier runs are not used.
    """

    def __init__(self, root: Path, emit: Emit, *, fresh: bool = False) -> None:
        self.root = root
        self._fresh = fresh
        self.outcomes: list[StageOutcome] = []
        self._emit = emit
        self._manifest = read_manifest(root, emit)
        self._withdrawn: dict[str, bytes] = {}

    def stage(
        self,
        name: str,
        key: Mapping[str, Any],
        cls: type[T],
        make: Callable[[Path], T],
        summary: Callable[[T], str],
        *,
        again: bool = False,
    ) -> T:
        """Return the result of a stage: from the store if `key` and the files are unchanged, else from `make`.

        Args:
            name: the stage, as the manifest lists it.
            key: all inputs that the result depends on, as JSON values.
            cls: dataclass of the result.
            make: called with an empty folder; writes its files there and returns a `cls` whose paths lie inside it. The
                files are then moved to the run directory, and the paths in the result are adjusted.
            summary: returns the line about a result for the terminal and the report.
            again: whether to call `make` whatever the store has. If that fails, the old result stays.

        Raises:
            StoreError: the directory cannot be written. Errors of `make` are passed on.
        """
        digest = _key_digest(name, key)
        cached = None if self._fresh or again else self._load(name, digest, cls)
        if cached is not None:
            line = summary(cached)
            self._emit(StageCached(name, line))
            self.outcomes.append(StageOutcome(name=name, status="cached", seconds=0.0, summary=line))
            return cached
        self._begin(name)
        start, runs_before = time.perf_counter(), network_runs.value
        with writing(self.root), _folder(self.root, name) as folder:
            with own_errors(self.root), marked(name):
                in_folder = make(folder)
            seconds = time.perf_counter() - start
            files = sorted(path.name for path in folder.iterdir())
            digests = {file: file_digest(folder / file) for file in files}
            for file in files:
                (folder / file).replace(self.root / file)
            # Paths are stored relative to the run directory, which may be moved as a whole.
            relative = cast(T, relocate(in_folder, folder, Path()))
            earlier_files = self._manifest["stages"].get(name, {"files": ()})["files"]
            self._manifest["stages"][name] = {
                "key": digest,
                "inputs": dict(key),
                "files": digests,
                "result": encode(relative),
                "seconds": round(seconds, 3),
            }
            self.write("manifest.json", json.dumps(self._manifest, indent=1))
            # A stage may write fewer files than before, such as no separate weights for a smaller model. The stale
            # ones are deleted, but only after the manifest no longer lists them.
            self._delete_unlisted(earlier_files)
        result = cast(T, relocate(relative, Path(), self.root))
        line = summary(result)
        self._emit(StageFinished(name, seconds, line))
        outcome = StageOutcome(name=name, status="ran", seconds=round(seconds, 3), summary=line)
        self.outcomes.append(dataclasses.replace(outcome, runs=network_runs.value - runs_before))
        return result

    def _begin(self, name: str) -> None:
        """Announce a stage whose result is not cached."""
        self._emit(StageStarted(name))

    def write(self, name: str, text: str) -> Path:
        """Write a text file (UTF-8) into the run directory, completely or not at all, and return its path.

        Raises:
            StoreError: the directory cannot be written.
        """
        path = self.root / name
        with writing(self.root):
            temporary = self.root / f".tmp-{name}"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        return path

    def withdraw(self, name: str) -> None:
        """Delete a text file that `render` wrote. Its content is remembered until the store is closed.

        Raises:
            StoreError: the directory cannot be written.
        """
        path = self.root / name
        with writing(self.root):
            if path.is_file():
                self._withdrawn[name] = path.read_bytes()
            path.unlink(missing_ok=True)

    def render(self, name: str, key: str, make: Callable[[], str]) -> None:
        """Write a text file: that which was withdrawn if it is unchanged and was made for the same key, else a new one.

        Raises:
            StoreError: the directory cannot be written.
        """
        earlier = self._withdrawn.get(name)
        if earlier is not None and self._manifest["rendered"].get(name) == [key, hashlib.sha256(earlier).hexdigest()]:
            self.write(name, earlier.decode())
            return
        text = make()
        self.write(name, text)
        self._manifest["rendered"][name] = [key, hashlib.sha256(text.encode()).hexdigest()]
        self.write("manifest.json", json.dumps(self._manifest, indent=1))

    def discard(self, name: str, **inputs: Any) -> bool:
        """Delete the stored result of a stage and its files, and return whether there was one to delete.

        If `inputs` are given, a result that was computed from these values is kept.

        Raises:
            StoreError: the directory cannot be written.
        """
        if not self._is_discarded(name, inputs):
            return False
        entry = self._manifest["stages"].pop(name)
        self.write("manifest.json", json.dumps(self._manifest, indent=1))
        with writing(self.root):
            self._delete_unlisted(entry["files"])
        return True

    def _is_discarded(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Return whether the store has a result of the stage that was computed from other values than `inputs`."""
        entry = self._manifest["stages"].get(name)
        if entry is None:
            return False
        return not inputs or any(entry["inputs"].get(key) != value for key, value in inputs.items())

    def forget_times(self) -> None:
        """Delete the timing caches, so that the next engine is built from new times.

        Raises:
            StoreError: the directory cannot be written.
        """
        times.forget(self.root)

    def _delete_unlisted(self, files: Iterable[str]) -> None:
        """Delete the files that no stage needs. Stages share the weights of a network that they do not change."""
        needed = {file for entry in self._manifest["stages"].values() for file in entry["files"]}
        for file in set(files) - needed:
            (self.root / file).unlink(missing_ok=True)

    def holds(self, name: str) -> bool:
        """Return whether the store has a result of the stage, whatever its inputs."""
        return name in self._manifest["stages"]

    def describe(self, environment: Mapping[str, str]) -> None:
        """Record the versions and the device of this run in the manifest."""
        if self._manifest.get("environment") != environment:
            self._manifest["environment"] = dict(environment)
            self.write("manifest.json", json.dumps(self._manifest, indent=1))

    def _entry(self, name: str, digest: str) -> Any:
        """Return the manifest's entry of a stage, or None if its key differs or one of its files has changed."""
        entry = self._manifest["stages"].get(name)
        if not entry or entry.get("key") != digest:
            _LOGGER.debug("%s: %s", name, "its inputs changed" if entry else "no earlier result")
            return None
        for file, expected in entry["files"].items():
            path = self.root / file
            if not path.is_file() or file_digest(path) != expected:
                _LOGGER.debug("%s: %s changed or is missing", name, path)
                return None
        return entry

    def _load(self, name: str, digest: str, cls: type[T]) -> T | None:
        entry = self._entry(name, digest)
        if entry is None:
            return None
        try:
            return cast(T, relocate(decode(cls, entry["result"]), Path(), self.root))
        except ValueError:  # the result was written by another version of trtopt: treat it as missing
            return None


@contextlib.contextmanager
def open_store(directory: Path | DefaultDir, emit: Emit, *, fresh: bool = False) -> Iterator[RunStore]:
    """Create or open a run directory and hold its lock until the block ends.

    Waits while another run holds the lock, after a warning. With `fresh`, results of earlier runs are not used.

    Raises:
        StoreError: the directory cannot be created or written.
        UsageError: it contains a report of another program.
    """
    from filelock import FileLock, Timeout

    root = directory if isinstance(directory, Path) else ROOT
    try:
        root = claimed(directory)
        root.mkdir(parents=True, exist_ok=True)
        check_own(root)
    except OSError as error:
        raise cannot_write(root, error) from error
    with writing(root):
        lock = FileLock(root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            emit(Warned(f"another run is using {root}: waiting for it"))
            lock.acquire()
    try:
        with writing(root):
            # Files of a run that was killed. No other run is active: this one holds the lock.
            for left_over in root.glob(".tmp-*"):
                shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        store = RunStore(root, emit, fresh=fresh)
        if fresh:
            store.forget_times()
        yield store
    finally:
        lock.release()


def read_result(root: Path, stage: str, cls: type[T], **inputs: Any) -> T | None:
    """Return the result of a stage of an earlier run, or None if there is none. The lock is not taken.

    A result is ignored if one of its files has changed since, or if it was computed from other values of `inputs`.
    """
    store = RunStore(root, silent)
    entry = store._manifest["stages"].get(stage)
    if not entry or any(entry["inputs"].get(key) != value for key, value in inputs.items()):
        return None
    return store._load(stage, entry["key"], cls)


@contextlib.contextmanager
def _folder(root: Path, stage: str) -> Iterator[Path]:
    """Create an empty folder for the files of a stage, and delete it at the end of the block."""
    # The name of a stage may contain a path, such as that of the model.
    name = "".join(character if character.isalnum() else "-" for character in stage)[:40]
    folder = Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _key_digest(name: str, key: Mapping[str, Any]) -> str:
    text = json.dumps({"stage": name, "trtopt": __version__, "code": code_digest(), **key}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
