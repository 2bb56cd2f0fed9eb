"""Python functions for offline predictions, and for partial results: `predict` and `merge`.

Touches: the output, as the command of the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trtopt.api.arguments import PathText, data_plan, path_of, to_path
from trtopt.events import Emit, silent
from trtopt.types import CalibrationTable, Predictions, Report


def predict(
    run: PathText,
    data: object,
    out: PathText,
    *,
    answers: str = "auto",
    recipe: PathText | None = None,
    classes: PathText | None = None,
    samples: int | None = None,
    batch: int | None = None,
    streams: int = 2,
    yield_to: str = "",
    shard: str = "",
    device: str = "cpu",
    force: bool = False,
    progress: Emit = silent,
) -> Predictions:
    """Write one row per sample to `out`, and return what was written; the arguments are the flags of `trtopt predict`.

    >>> import numpy as np
    >>> from trtopt import predict
    >>> images = np.load("samples/digits/eval.npz")["input"][:64]
    >>> done = predict("samples/digits/model.onnx", images, "rows.npz", answers="top1")
    >>> (done.rows, done.failed, np.load("rows.npz")["classes"].shape)
    (64, 0, (64, 1))

    Raises:
        TrtoptError: the input cannot be used, or the output cannot be written.
    """
    from trtopt.commands.predict import predict as start
    from trtopt.errors import UsageError
    from trtopt.plan import PredictPlan
    from trtopt.predict.pauses import parse_limit
    from trtopt.shards.shard import WHOLE, parse_shard

    source = data_plan("data", data, recipe, skip_bad=False, samples=samples)
    if source is None:
        raise UsageError("no data to predict", fix="Give data")
    plan = PredictPlan(
        run=to_path("run", run),
        out=to_path("out", out),
        data=replace(source, classes=path_of("classes", classes)),
        answers=answers,
        batch=batch,
        streams=streams,
        device=device,
        shard=parse_shard(shard) if shard else WHOLE,
        yield_to=parse_limit(yield_to) if yield_to else None,
        force=force,
    )
    return start(plan, progress)


def merge(
    partials: Sequence[PathText], *, out: PathText | None = None, progress: Emit = silent
) -> CalibrationTable | Report | Predictions:
    """Return the table, the report or the rows of the whole from the files that `--shard` wrote; as `trtopt merge`.

    >>> from trtopt import merge, predict
    >>> parts = [predict("samples/digits/model.onnx", "samples/digits/eval.npz", "all.npz", shard=f"{i}/2").out
    ...          for i in (1, 2)]
    >>> merge(parts).rows
    1000

    Raises:
        TrtoptError: the files do not belong together, or one is missing.
    """
    from trtopt.commands.merge import merge as run

    return run([to_path("a partial result", partial) for partial in partials], path_of("out", out), progress)[0]
