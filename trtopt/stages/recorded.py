"""Comparisons in parts: the outputs of a shard, recorded in a partial result, and those of all shards, replayed.

Touches: the files of partial results; reads the samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt import __version__
from trtopt.codec import encode
from trtopt.plan import ComparePlan
from trtopt.run import Run
from trtopt.shards.partial import Header, Partial, Write, check_key, is_there, write_partial
from trtopt.shards.shard import Shard
from trtopt.stages.compare import Evaluation, running
from trtopt.types import OnnxModel
from trtopt.writing import writing

if TYPE_CHECKING:
    from trtopt.compare.run import Ran

_FINGERPRINTS = "fingerprints.json"


def record(
    run: Run, models: tuple[OnnxModel, OnnxModel], evaluation: Evaluation, plan: ComparePlan, to: tuple[Path, Shard]
) -> bool:
    """Write the outputs of both models for a shard to a file; return False if they are there already.

    Args:
        run: the run.
        models: the baseline and the candidate.
        evaluation: the samples and options.
        plan: the comparison of the whole.
        to: the file of the partial result, and the shard.
    """
    from trtopt.compare import recorded

    path, shard = to
    fingerprints: dict[int, str] = {}
    with running(run, *models, evaluation, fingerprints, shard) as ran:
        key = {**_inputs(*models, evaluation), "gates": encode(plan.gates), **_facts(ran)}
        header = Header(kind="compare", shard=shard, key=key, plan=encode(plan))
        if is_there(path, header):
            return False

        def members() -> Iterator[tuple[str, Write]]:
            for number, outputs in enumerate(ran.outputs):
                yield f"{number:06d}.batch", partial(recorded.write, outputs)
            text = json.dumps({str(index): text for index, text in sorted(fingerprints.items())})
            yield _FINGERPRINTS, lambda file: file.write(text.encode())

        with writing(path.parent):
            write_partial(path, header, members())
    return True


def replay(
    partials: Sequence[Partial], baseline: OnnxModel, candidate: OnnxModel, evaluation: Evaluation
) -> tuple[Ran, Mapping[int, str]]:
    """Return the recorded outputs of all shards, and the fingerprints of the samples.

    Raises:
        UsageError: the partial results are of other models or another data set.
        StoreError: one is damaged.
    """
    from trtopt.compare import recorded
    from trtopt.compare.run import Ran

    key = partials[0].header.key
    found = _inputs(baseline, candidate, evaluation)
    check_key(partials, {**key, **found})
    names, where = key["names"], key["runtime"]
    ran = Ran(
        names=(names[0], names[1]),
        where=tuple(where),
        size=int(key["batch"]),
        groups=evaluation.dataset.groups if key["grouped"] else None,
        outputs=recorded.replayed(partials, evaluation.dataset),
    )
    return ran, recorded.fingerprints(partials, _FINGERPRINTS)


def _inputs(baseline: OnnxModel, candidate: OnnxModel, evaluation: Evaluation) -> dict[str, Any]:
    """Return what is compared, as JSON values."""
    samples = evaluation.dataset.groups or evaluation.dataset
    return {
        "trtopt": __version__,
        "model": baseline.digest,
        "candidate": candidate.digest,
        "engine": evaluation.engine.digest if evaluation.engine else "",
        "data": evaluation.dataset.digest,
        "labels": hashlib.sha256(repr(samples.labels).encode()).hexdigest(),
        "measure": encode(evaluation.measure),
    }


def _facts(ran: Ran) -> dict[str, Any]:
    """Return how the outputs were computed, as JSON values."""
    return {
        "batch": ran.size,
        "grouped": ran.groups is not None,
        "names": list(ran.names),
        "runtime": list(ran.where),
    }
