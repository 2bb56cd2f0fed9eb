"""The command `trtopt bench --server`: a load test of a served model.

Touches: the network; reads the samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trtopt.bench import inputs
from trtopt.bench.gate import Gate
from trtopt.data import images, load_recipe, open_dataset
from trtopt.data.dataset import Feed
from trtopt.errors import DataError
from trtopt.events import Emit, Noted, Progress, StageFinished, StageStarted, Warned, silent
from trtopt.plan import DataPlan
from trtopt.serve import judge, load
from trtopt.serve.client import Client, RequestError, Signature
from trtopt.shapes import AskedShape, profile
from trtopt.types import Benchmark, GateResult, Report, Table, TensorSpec, Verdict

_MOST_FEEDS = 256
"""Number of samples that are kept in memory, and sent in turn."""
_MOST_ERRORS = 3
_TIMES = ("p50", "p90", "p95", "p99", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """A load test.

    Attributes:
        server: the address, `grpc://HOST:PORT`.
        model: the name of the model; empty if the server has one.
        rates: requests per second, ascending.
        seconds: time per rate.
        timeout: time after which a request counts as failed, in seconds.
        data: the samples to send; None for random ones.
        shapes: the `--shape` flags, for random samples.
        latency_limit: limit of the p99 in milliseconds; infinite without one.
        gates: the gates.
        poisson: send at random times instead of in even steps.
    """

    server: str
    model: str
    rates: tuple[float, ...]
    seconds: float
    timeout: float
    data: DataPlan | None = None
    shapes: tuple[AskedShape, ...] = ()
    latency_limit: float = math.inf
    gates: tuple[Gate, ...] = ()
    poisson: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTest:
    """Outcome of a load test.

    Attributes:
        server: the address.
        model: the name of the model.
        results: what was measured at each rate.
        mean_batch: samples per run of the model, over all rates.
        latency_limit: limit of the p99 in milliseconds; infinite without one.
        holds: the highest rate that keeps the limit (0: none).
        breaks: the lowest rate that breaks it (0: none).
        gates: the results of the gates.
        verdict: their verdict.
        warnings: rates that this machine cannot send, and what requests failed with.
    """

    server: str
    model: str
    results: tuple[load.RateResult, ...]
    mean_batch: float
    latency_limit: float
    holds: float
    breaks: float
    gates: tuple[GateResult, ...]
    verdict: Verdict
    warnings: tuple[str, ...] = ()


def run(plan: LoadPlan, emit: Emit = silent) -> LoadTest:
    """Send requests at each rate, and judge the gates.

    Raises:
        UsageError: the model, a rate or a gate cannot be used.
        DataError: the samples do not fit the model, or the server refuses the first one.
        EnvironmentUnableError: the server does not answer.
        MissingDependencyError: tritonclient is not installed.
    """
    judge.check(plan.gates, plan.rates)
    with Client(plan.server) as client:
        model = client.chosen(plan.model)
        feeds = list(_feeds(client.signature(model), plan, emit))
        traffic = load.Traffic(
            model=model, feeds=feeds, seconds=plan.seconds, timeout=plan.timeout, poisson=plan.poisson
        )
        try:
            client.infer(model, feeds[0])
        except RequestError as error:
            raise DataError(f"{model} refuses a request", why=str(error), fix="Give samples with --data") from error
        before = client.counts(model)
        results = tuple(_measure(client, traffic, plan.rates, emit))
        samples, runs = (after - earlier for after, earlier in zip(client.counts(model), before, strict=True))
    warnings = tuple(_warnings(results))
    for line in warnings:
        emit(Warned(line))
    holds, breaks = load.breaks(results, plan.latency_limit)
    gates = judge.judged(plan.gates, results, model)
    return LoadTest(
        server=plan.server,
        model=model,
        results=results,
        mean_batch=samples / runs if runs else math.nan,
        latency_limit=plan.latency_limit,
        holds=holds,
        breaks=breaks,
        gates=gates,
        verdict=judge.verdict(gates),
        warnings=warnings,
    )


def _warnings(results: Sequence[load.RateResult]) -> Iterator[str]:
    """Yield a line for each rate that this machine cannot send, and for the most frequent errors at each rate."""
    for each in results:
        if each.is_late:
            yield f"this machine cannot send {each.rate:g} requests per second: send them from several"
        for message, count in list(each.errors.items())[:_MOST_ERRORS]:
            yield f"{each.rate:g} requests/s: {count} x {message}"


def report(found: LoadTest, *, allow_inconclusive: bool = False) -> Report:
    """Return the outcome as a report: the table of the rates, and the gates."""
    return Report(
        command="bench",
        verdict=found.verdict,
        model=found.model,
        benchmark=Benchmark(
            targets=(), timings=(), gates=found.gates, verdict=found.verdict, tables=(table(found.results),)
        ),
        warnings=found.warnings,
        notes=(f"{found.model} at {found.server}, mean batch {found.mean_batch:.1f}", *limit(found)),
        allow_inconclusive=allow_inconclusive,
    )


def table(results: Sequence[load.RateResult]) -> Table:
    """Return a row for each rate."""
    rows = []
    for each in results:
        times = tuple(f"{each.latency[name]:.2f}" for name in _TIMES)
        rows.append((f"{each.rate:g}", f"{each.throughput:.1f}", *times, str(sum(each.errors.values()))))
    head = ("requests/s", "answers/s", *_TIMES, "errors")
    return Table(title="latency in ms, from when a request was due", head=head, rows=tuple(rows))


def limit(found: LoadTest) -> list[str]:
    """Return a line about the limit of the p99, if there is one."""
    if not math.isfinite(found.latency_limit):
        return []
    asked = f"p99 within {found.latency_limit:g} ms"
    held = f"{asked} up to {found.holds:g} requests/s" if found.holds else f"{asked} at no rate"
    return [f"{held}; broken at {found.breaks:g} requests/s" if found.breaks else held]


def _measure(client: Client, traffic: load.Traffic, rates: tuple[float, ...], emit: Emit) -> Iterator[load.RateResult]:
    emit(StageStarted("load"))
    for done, rate in enumerate(rates):
        emit(Progress("load", done, len(rates), f"{rate:g} requests/s"))
        yield load.at_rate(client, traffic, rate)
    emit(StageFinished("load", traffic.seconds * len(rates), f"{len(rates)} rates"))


def _feeds(signature: Signature, plan: LoadPlan, emit: Emit) -> Iterator[Feed]:
    """Yield the requests: the samples of the data, encoded images for a model that decodes them, or random values."""
    if plan.data is None:
        emit(Noted("the requests are random: give real ones with --data"))
        ranges, _ = profile(signature.inputs, plan.shapes)
        yield inputs.random(inputs.Sizes(inputs=signature.inputs, ranges=ranges), 1)
        return
    source = str(plan.data.source)
    folder = Path(source)
    if _decodes(signature.inputs) and folder.is_dir() and (names := images.find(folder)):
        yield from (_encoded(folder / name, signature.inputs[0]) for name in names[:_MOST_FEEDS])
        return
    recipe = load_recipe(plan.data.recipe) if plan.data.recipe else None
    most = min(plan.data.samples or _MOST_FEEDS, _MOST_FEEDS)
    dataset = open_dataset(plan.data.source, signature.inputs, recipe=recipe, skip_bad=plan.data.skip_bad, most=most)
    yield from (dataset.load(i) for i in range(len(dataset)))


def _decodes(specs: tuple[TensorSpec, ...]) -> bool:
    """Return whether a model takes the bytes of a file: one input of bytes, uint8 [batch, length] or string."""
    return len(specs) == 1 and (
        specs[0].dtype == "string" or (specs[0].dtype == "uint8" and specs[0].shape[1:] == ("?",))
    )


def _encoded(path: Path, spec: TensorSpec) -> Feed:
    """Return a request with the bytes of a file."""
    data = path.read_bytes()
    if spec.dtype == "string":
        return {spec.name: np.array([[data]], dtype=object)}
    return {spec.name: np.frombuffer(data, np.uint8)[np.newaxis]}
