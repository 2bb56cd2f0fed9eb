"""The folder of a fleet. A rerun replaces the files that changed, and touches nothing else.

    plan.json               the plan, which a rerun reads
    models/                 the repository; with several servers, a folder in it for each
    compose.yaml, prometheus.yml, grafana/
    kubernetes.yaml
    load.sh

Touches: the folder.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtopt.errors import StoreError, UsageError
from trtopt.fleet import compose, dashboard, kubernetes, load
from trtopt.fleet.plan import FILE, Plan, text
from trtopt.fleet.servers import servers
from trtopt.requires import require
from trtopt.serve import repository
from trtopt.serve.repository import Folder

_ENGINE, _GRAPH = "1/model.plan", "1/model.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Models that a rerun wrote or removed, each with its server."""

    written: tuple[tuple[str, str], ...]
    removed: tuple[tuple[str, str], ...]


def check_place(place: Path) -> None:
    """Check that a folder can take a plan.

    Raises:
        UsageError: it is a file, or has contents that are not those of a plan.
        MissingDependencyError: PyYAML is not installed.
    """
    require("yaml")
    if place.exists() and not place.is_dir():
        raise UsageError(f"{place} is a file", fix="Name a folder with -o")
    if place.is_dir() and any(place.iterdir()) and not (place / FILE).is_file():
        raise UsageError(f"{place} is not empty and has no {FILE}", fix="Name another folder with -o")


def check_models(place: Path, plan: Plan, previous: Plan | None) -> None:
    """Check that a folder can take the models of a plan.

    Raises:
        UsageError: it has such a model, which is not one of the previous plan.
    """
    own = _models(previous) if previous is not None else {}
    for model in _models(plan).keys() - own.keys():
        if (place / model).exists():
            raise UsageError(
                f"{place / model} exists", why="the previous plan has no such model", fix="Remove it first"
            )


@contextlib.contextmanager
def staged(place: Path, models: Mapping[str, Sequence[Folder]]) -> Iterator[Path]:
    """Write the repositories of servers to a temporary folder inside the folder of the fleet, and yield it.

    Args:
        place: the folder of the fleet.
        models: the models by repository.

    Raises:
        StoreError: the folder cannot be written.
    """
    created = not place.exists()
    try:
        with _writing(place):
            place.mkdir(parents=True, exist_ok=True)
        with _writing(place), tempfile.TemporaryDirectory(prefix=".tmp-trtopt-", dir=place) as folder:
            stage = Path(folder)
            for name, folders in models.items():
                for each in folders:
                    repository.write(each, stage / name / each.name)
            yield stage
    finally:
        if created:
            with contextlib.suppress(OSError):  # it is not empty if it was written
                place.rmdir()


def complete(stage: Path, plan: Plan, image: str, *, mps: bool) -> None:
    """Add everything but the repository to a staged folder."""
    found = servers(plan)
    size = sum(path.stat().st_size for path in (stage / "models").rglob("*") if path.is_file())
    files: dict[str, Any] = {
        "compose.yaml": compose.compose(plan, found, image, mps=mps),
        "prometheus.yml": compose.prometheus(found),
        **{f"grafana/{name}": content for name, content in dashboard.provisioning().items()},
    }
    for name, content in files.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text(_yaml([content]), encoding="utf-8")
    (stage / "kubernetes.yaml").write_text(_yaml(kubernetes.manifests(plan, found, image, size)), encoding="utf-8")
    shown = json.dumps(dashboard.dashboard(), indent=1, ensure_ascii=False)
    (stage / "grafana/dashboards/fleet.json").write_text(f"{shown}\n", encoding="utf-8")
    (stage / "load.sh").write_text(load.script(plan, found), encoding="utf-8")
    (stage / "load.sh").chmod(0o755)
    (stage / FILE).write_text(text(plan), encoding="utf-8")


def _yaml(objects: Sequence[Any]) -> str:
    """Return objects as a stream of YAML, without anchors: readers of the file do not expect them."""
    yaml: Any = require("yaml")
    plain = type("Plain", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    text: str = yaml.dump_all(objects, Dumper=plain, sort_keys=False, allow_unicode=True)
    return text


def update(place: Path, stage: Path, plan: Plan, previous: Plan | None) -> Change:
    """Move the files of a staged folder that differ into place, the plan last, and remove models that are left out.

    An engine that was built there stays, unless its graph changed.

    Raises:
        StoreError: the folder cannot be written.
    """
    now, before = _models(plan), _models(previous) if previous is not None else {}
    written = []
    with _writing(place):
        for model, named in now.items():
            if _is_new_graph(place / model, stage / model):
                (place / model / _ENGINE).unlink(missing_ok=True)
            if _move(stage / model, place / model):
                written.append(named)
        gone = [model for model in before if model not in now]
        for model in gone:
            shutil.rmtree(place / model, ignore_errors=True)
            # A server would take the empty folder of another one for a model.
            with contextlib.suppress(OSError):
                (place / model).parent.rmdir()
        for path in sorted(stage.rglob("*"), key=lambda path: (path.name == FILE, path)):
            if path.is_file() and path.relative_to(stage).parts[0] != "models":
                _replace(path, place / path.relative_to(stage))
    return Change(written=tuple(written), removed=tuple(before[model] for model in gone))


def _models(plan: Plan) -> dict[str, tuple[str, str]]:
    """Return the server and the name of each model by the path of its folder."""
    return {
        f"{server.repository}/{service.model}": (server.name, service.model)
        for server in servers(plan)
        for service in server.models(plan)
    }


def _is_new_graph(old: Path, new: Path) -> bool:
    """Return whether a model has another graph than before, from which no engine has been built yet."""
    if (new / _ENGINE).exists() or not (old / _ENGINE).exists():
        return False
    return any(_differs(new / name, old / name) for name in (_GRAPH, "build.sh"))


def _move(source: Path, target: Path) -> bool:
    """Move the files of a folder that differ, and return whether there were any. What else is there stays."""
    moved = False
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            (target / path.relative_to(source)).mkdir(parents=True, exist_ok=True)
        elif _differs(path, target / path.relative_to(source)):
            _replace(path, target / path.relative_to(source))
            moved = True
    return moved


def _differs(new: Path, old: Path) -> bool:
    if not new.exists() or not old.exists():
        return new.exists() != old.exists()
    return not filecmp.cmp(new, old, shallow=False)


def _replace(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise StoreError(f"cannot write to {place}", why=why, fix="Name another folder with -o") from error


def changed_servers(change: Change) -> tuple[str, ...]:
    """Return the names of the servers to restart."""
    return tuple(sorted({server for server, _ in (*change.written, *change.removed)}))
