"""Shards on the workers of a Ray cluster: one task per shard, one GPU or some cores per task.

Ray schedules the tasks, and runs those of lost workers again. What a task returns is the file of its partial result, so
that workers and driver need not share a disk for it. Model and data must have the same paths everywhere.

Touches: the cluster; imports ray.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from trtopt.errors import EXIT_UNABLE, DataError, EnvironmentUnableError, TrtoptError
from trtopt.requires import require
from trtopt.shards.shard import Shard, shards

RETRIES = 3
"""How often a task of a lost worker is run again."""
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A Ray cluster: its `address`, or `auto` for the one that this machine belongs to.

    A worker has one GPU where the cluster has GPUs, else `cores` cores.
    """

    address: str = "auto"
    cores: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Result of a task: the partial result, or an error and its exit code."""

    data: bytes = b""
    error: str = ""
    exit_code: int = 0


def caught(work: Callable[[Shard], bytes], shard: Shard) -> Answer:
    """Return what `work` returns for a shard, or its error: Ray would wrap it, and run it again."""
    try:
        return Answer(data=work(shard))
    except TrtoptError as error:
        return Answer(error=str(error), exit_code=error.exit_code)


def each_shard(
    cluster: Cluster, work: Callable[[Shard], bytes], parts: Sequence[str] = ()
) -> Iterator[tuple[Shard, bytes]]:
    """Divide the work among all workers of the cluster, and yield each shard's result as it comes.

    Args:
        cluster: the cluster.
        work: is called on a worker with its shard; it is a function of a module, or a `functools.partial` of one.
        parts: what each shard is, for errors, if there are as many as that; by default there is one for each worker.

    Raises:
        EnvironmentUnableError: no cluster is found, it has no room for a worker, or a shard cannot be computed there.
        DataError: a shard failed, or every worker that had it was lost; the message names it.
        MissingDependencyError: ray is not installed.
    """
    ray = require("ray")
    with _connected(ray, cluster.address):
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        count = gpus or max(cores // cluster.cores, min(cores, 1))
        if not count:
            raise EnvironmentUnableError("the Ray cluster has neither GPUs nor cores", fix="Add a node to it")
        needs: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": min(cluster.cores, cores)}
        task = ray.remote(max_retries=RETRIES, **needs)(caught)
        waiting = {task.remote(work, shard): shard for shard in shards(len(parts) or count)}
        try:
            while waiting:
                (ready, *_), _ = ray.wait(list(waiting))
                shard = waiting.pop(ready)
                yield shard, _result(ray, ready, *_named(shard, parts))
        finally:
            for reference in waiting:
                with suppress(Exception):
                    ray.cancel(reference, force=True)


def _named(shard: Shard, parts: Sequence[str]) -> tuple[str, str]:
    """Return how errors name a shard, and how to compute it alone."""
    if parts:
        return parts[shard.number - 1], "Run it alone to see why"
    return f"shard {shard}", f"Run it alone to see why: --shard {shard}"


def _result(ray: Any, reference: Any, name: str, fix: str) -> bytes:
    try:
        answer: Answer = ray.get(reference)
    except ray.exceptions.RayError as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(f"{name} failed {RETRIES + 1} times", why=why, fix=fix) from error
    if not answer.error:
        return answer.data
    kind = EnvironmentUnableError if answer.exit_code == EXIT_UNABLE else DataError
    raise kind(f"{name} failed", why=answer.error)


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Connect to a cluster until the block ends, unless this process is connected already."""
    if ray.is_initialized():
        yield
        return
    fix = "Start one with: ray start --head"
    if why := _unreachable(address):
        raise EnvironmentUnableError(f"no Ray cluster at {address}", why=why, fix=fix)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about future versions
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise EnvironmentUnableError(f"no Ray cluster at {address}", why=why, fix=fix) from error
    try:
        yield
    finally:
        ray.shutdown()


def _unreachable(address: str) -> str:
    """Return why nothing answers at an address HOST:PORT; Ray itself would try it for minutes."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        if parts.port is None:
            return "" if address == "auto" else "an address is HOST:PORT, or auto"
        with socket.create_connection((parts.hostname or "", parts.port), timeout=_CONNECT_SECONDS):
            return ""
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
