"""The command `trtopt predict`: one row per sample, written by the engine of a run or by its typed graph.

Touches: the output, and files beside it; the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trtopt import stages
from trtopt.candidate import ENGINE_NOT_RUN, Candidate, resolve
from trtopt.codec import encode
from trtopt.commands import checks
from trtopt.errors import UsageError
from trtopt.events import Emit, Noted, StageCached, StageFinished, StageStarted, Warned, silent
from trtopt.plan import PredictPlan
from trtopt.shards.partial import Header, Partial, fill_partial, partial_name
from trtopt.shards.shard import WHOLE
from trtopt.stages.compare import compiled, opened
from trtopt.types import OnnxModel, Predictions, TensorSpec
from trtopt.wording import counted

if TYPE_CHECKING:
    from trtopt.predict.formats import Format
    from trtopt.predict.journal import Journal
    from trtopt.predict.probe import Model

KIND = "predict"
_BATCH = {"cpu": 32, "cuda": 64}
"""Largest batch without `--batch`; a larger one gains little."""
_ENGINE_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """The model of a run, loaded, and the text that says what runs."""

    model: Model
    ran: str
    device: str
    most: int


def predict(plan: PredictPlan, emit: Emit = silent) -> Predictions:
    """Write one row per sample to `plan.out`, or the partial result of a shard beside it.

    A run that was killed is resumed: no row is lost or written twice.

    Raises:
        UsageError: the run or the format does not exist, or the output is of another run.
        TrtoptError: the model cannot be run, no sample can be used, or the output cannot be written.
    """
    from trtopt.predict.answers import check_name
    from trtopt.predict.formats import format_of
    from trtopt.predict.journal import completed, open_journal

    format = format_of(plan.out)
    check_name(plan.answers)
    candidate = resolve(plan.run)
    if candidate.unrecorded:
        emit(Warned(candidate.unrecorded))
    checks.exists(plan.data)
    out = plan.out if plan.shard == WHOLE else plan.out.with_name(f"{plan.out.name}.{partial_name(plan.shard)}")
    described, _ = _unfixed(candidate.onnx)
    dataset = stages.open_data(plan.data, described, to_predict=True)
    stages.tell(emit, dataset)
    start = time.perf_counter()
    with _loaded(plan, candidate, emit) as loaded:
        classes = stages.class_names(plan.data)
        request = _request(plan, candidate, loaded, dataset.digest, classes)
        if not plan.force and (summary := completed(out, request)) is not None:
            earlier = Predictions(out=out, **_facts(summary))
            emit(StageCached(KIND, _line(earlier)))
            return earlier
        from trtopt.predict.loop import Work

        emit(StageStarted(KIND))
        work = Work(
            dataset=dataset, shard=plan.shard, answers=plan.answers, classes=classes, most=plan.batch or loaded.most
        )
        with open_journal(out, request, force=plan.force) as journal:
            result = _run(plan, loaded, work, journal, format, emit)
    emit(StageFinished(KIND, time.perf_counter() - start, _line(result)))
    if result.failed:
        emit(Warned(f"{result.failed} of {result.rows} samples have no answer: see the column `error`"))
    return result


def merge(partials: list[Partial], out: Path | None, emit: Emit = silent) -> Predictions:
    """Write the rows of all shards, in their order, to `out`, by default the output that the shards were asked for.

    Raises:
        UsageError: the output is of another run.
        StoreError: a partial result is damaged, or the output cannot be written.
    """
    from trtopt.codec import decode
    from trtopt.predict.answers import Field
    from trtopt.predict.formats import format_of
    from trtopt.predict.journal import completed, write_output

    first = partials[0].header
    target = out or Path(str(first.plan["out"]))
    if target.suffix.lower() != Path(str(first.plan["out"])).suffix.lower():
        raise UsageError(
            f"{target} has another suffix than the shards",
            why=f"they were made for {first.plan['out']}",
            fix="Use theirs",
        )
    format = format_of(target)
    request = {name: value for name, value in first.key.items() if name != "block"}
    completed(target, request)
    facts = [partial.header.facts for partial in partials]
    fields: list[Any] = facts[0]["fields"]
    summary = {**_facts(facts[0]), "rows": sum(each["rows"] for each in facts)}
    summary["failed"] = sum(each["failed"] for each in facts)
    summary["ran"] = "; ".join(dict.fromkeys(each["ran"] for each in facts))
    parts = [partial(each.member, name) for each in partials for name in each.members()]
    decoded = tuple(decode(Field, field) for field in fields)
    write_output(target, request, summary, lambda file: format.join(parts, decoded, file))
    result = Predictions(out=target, **_facts(summary))
    emit(StageFinished(KIND, 0.0, _line(result)))
    return result


def _run(plan: PredictPlan, loaded: _Loaded, work: Any, journal: Journal, format: Format, emit: Emit) -> Predictions:
    """Write the missing blocks, and then the output."""
    from trtopt.predict import pauses
    from trtopt.predict.journal import write_output
    from trtopt.predict.loop import Tools
    from trtopt.predict.loop import predict as write_blocks
    from trtopt.predict.memory import free_memory

    def tell(remark: str) -> None:
        emit(Noted(remark))

    with free_memory(loaded.device) as free, pauses.opened(plan.yield_to, tell) as waiting:
        tools = Tools(free=free, emit=emit, tell=tell, pauses=waiting)
        done = write_blocks(loaded.model, work, journal, format, tools)
    assert journal.layout is not None
    facts = {"rows": done.rows, "failed": done.failed, "answers": done.answers, "ran": loaded.ran}
    facts["batch"] = journal.layout.batch
    parts = journal.parts()

    def fill(file: IO[bytes]) -> None:
        if plan.shard == WHOLE:
            format.join(list(parts.values()), done.fields, file)
        else:
            header = _header(plan, journal, {**facts, "fields": encode(done.fields)})
            members = ((f"{number:06d}.part", partial(_copy, part)) for number, part in parts.items())
            fill_partial(file, header, members)

    write_output(journal.out, journal.request, facts, fill)
    journal.remove()
    return Predictions(out=journal.out, rate=done.rate, resumed=done.resumed, **_facts(facts))


def _header(plan: PredictPlan, journal: Journal, facts: Mapping[str, Any]) -> Header:
    assert journal.layout is not None
    key = {**journal.request, "block": journal.layout.rows}
    return Header(kind=KIND, shard=plan.shard, key=key, plan={"out": str(plan.out)}, facts=facts)


def _copy(part: Any, file: IO[bytes]) -> None:
    import shutil

    with part() as source:
        shutil.copyfileobj(source, file, 1 << 20)


def _request(
    plan: PredictPlan, candidate: Candidate, loaded: _Loaded, data: str, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Return everything that the rows depend on, as JSON values."""
    import hashlib

    from trtopt import __version__

    engine = compiled(candidate.engine)
    runs_engine = engine is not None and not loaded.ran.endswith(ENGINE_NOT_RUN)
    return {
        "trtopt": __version__,
        "model": candidate.onnx.digest,
        "engine": engine.digest if engine is not None and runs_engine else "",
        "data": data,
        "answers": plan.answers,
        "format": plan.out.suffix.lower(),
        "classes": hashlib.sha256("\n".join(classes).encode()).hexdigest() if classes else "",
    }


def _facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Predictions` that a summary records."""
    return {name: summary[name] for name in ("rows", "failed", "answers", "ran", "batch")}


@contextmanager
def _loaded(plan: PredictPlan, candidate: Candidate, emit: Emit) -> Iterator[_Loaded]:
    """Load the engine where it can run, else the typed graph."""
    from trtopt.calibrate.observe import callers
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.predict.probe import Model

    engine = compiled(candidate.engine)
    _, fixed = _unfixed(candidate.onnx)
    with opened(engine, emit, streams=plan.streams) as runner:
        if runner is not None:
            most = min(runner.max_batch, _ENGINE_BATCH)
            streams = plan.streams if hasattr(runner, "submit") else getattr(runner, "callers", 1)
            model = Model(runner=runner, described=candidate.onnx, fixed=fixed, streams=streams)
            yield _Loaded(model=model, ran=runner.where, device=runner.device, most=most)
            return
        graph = open_runner(candidate.onnx.path, device=plan.device, callers=callers())
        ran = graph.where + (ENGINE_NOT_RUN if engine else "")
        model = Model(runner=graph, described=candidate.onnx, fixed=fixed, streams=graph.callers)
        yield _Loaded(model=model, ran=ran, device=graph.place.kind, most=_BATCH[graph.place.kind])


def _unfixed(model: OnnxModel) -> tuple[OnnxModel, int]:
    """Return the model with a dynamic batch, and the batch that it is fixed at, or 0.

    Samples are then opened one by one: one that cannot be read must not take others of its batch with it.
    """
    firsts = {spec.shape[0] if spec.shape else 1 for spec in model.inputs}
    fixed = firsts.pop() if len(firsts) == 1 else 0
    if not isinstance(fixed, int) or fixed < 2:
        return model, int(fixed) if isinstance(fixed, int) else 0
    inputs = tuple(TensorSpec(name=s.name, dtype=s.dtype, shape=("batch", *s.shape[1:])) for s in model.inputs)
    return replace(model, inputs=inputs), fixed


def _line(result: Predictions) -> str:
    """Return the summary line."""
    rows = f"{counted(result.rows, 'row')} of {result.answers}"
    failed = f", {result.failed} without an answer" if result.failed else ""
    resumed = f", {result.resumed} of them written before" if result.resumed else ""
    rate = f", {result.rate:.1f} samples/s" if result.rate else ""
    return f"{rows}{failed}{resumed}{rate}, {result.ran}"
