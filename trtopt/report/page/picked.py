"""Selection of what `report.html` shows: its sections, key figures, rows and chart series.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trtopt.report.page import blocks, charts, evidence, words
from trtopt.report.page.svg import drawable
from trtopt.types import (
    CalibratedTensor,
    CandidateReport,
    Comparison,
    LayerDrift,
    OutputDrift,
    Report,
    Spread,
    Timing,
    Verdict,
)

_MAX_HISTOGRAMS = 12
_MAX_POINTS = 40
_WORST_LAYERS = 10
_OPEN: dict[Verdict, str] = {"fail": "failed", "inconclusive": "inconclusive"}


@dataclass(frozen=True, slots=True)
class Fact:
    """Key figure: its name, its value and a remark."""

    name: str
    value: str
    remark: str = ""


def judged(report: Report) -> tuple[words.Judged, ...]:
    """Return every gate of the run: failed ones first, then inconclusive ones, otherwise in the report's order."""
    found = words.judged(report)
    if report.parity is not None and report.comparison is None:
        found += [words.Judged("", gate) for gate in report.parity.gates]
    order = ("fail", "inconclusive", "unchecked", "pass")
    return tuple(sorted(found, key=lambda each: order.index(each.gate.verdict)))


def tally(rows: Sequence[words.Judged]) -> str:
    """Say how many gates failed, and how many are inconclusive."""
    count = Counter(each.gate.verdict for each in rows)
    said = [f"{count[verdict]} {word}" for verdict, word in _OPEN.items() if count[verdict]]
    return f"{' and '.join(said)} of {len(rows)} {'gate' if len(rows) == 1 else 'gates'}"


def facts(report: Report) -> tuple[Fact, ...]:
    """Return accuracy, drift, precision, size and speed, as far as they were measured."""
    found = []
    if report.comparison is not None:
        found += _drift_facts(report.comparison)
    if report.typed is not None and report.typed.decisions:
        total = len(report.typed.decisions)
        count = report.typed.counts().get(report.precision, 0)
        found.append(Fact(f"Nodes in {report.precision}", f"{count} of {total}", "of those that compute on floats"))
    if report.engine is not None:
        found.append(Fact("Engine", words.size(report.engine.size_bytes), report.engine.builder))
    return (*found, *_speed(report))


def _drift_facts(comparison: Comparison) -> list[Fact]:
    """Return the largest loss of accuracy (without labels, the lowest agreement) and the lowest SQNR of the outputs."""
    found, outputs = [], comparison.outputs
    labelled = [output.values for output in outputs if {"accuracy", "accuracy_fp32"} <= output.values.keys()]
    agreed = [output.values["top1"] for output in outputs if "top1" in output.values]
    if labelled:
        worst = min(labelled, key=lambda values: values["accuracy"] - values["accuracy_fp32"])
        before = words.number("accuracy_fp32", worst["accuracy_fp32"])
        found.append(Fact("Top-1 accuracy", words.number("accuracy", worst["accuracy"]), f"{before} in FP32"))
    elif agreed:
        found.append(Fact("Top-1 agreement", words.number("top1", min(agreed)), "with FP32"))
    noisy = [output for output in outputs if "sqnr" in output.values]
    if noisy:
        output = min(noisy, key=lambda each: each.values["sqnr"])
        found.append(Fact("SQNR", words.number("sqnr", output.values["sqnr"]), f"output {output.output}"))
    return [*found, Fact("Samples", f"{comparison.samples:,}", comparison.data)]


def _speed(report: Report) -> list[Fact]:
    """Return the speedup of the last target over the first, at the largest batch size."""
    if report.benchmark is None or not report.benchmark.targets:
        return []
    first, last = (report.benchmark.targets[place].name for place in (0, -1))
    known = [each for each in report.benchmark.timings if each.target == last and math.isfinite(each.speedup)]
    if not known:
        return []
    timing = max(known, key=lambda each: each.batch)
    return [Fact("Speed", f"{timing.speedup:.2f}×", f"{last} against {first}, batch {timing.batch}")]


def sections(report: Report) -> tuple[tuple[str, str], ...]:
    """Return identifier and title of each section that the report has, in order."""
    comparison, typed = report.comparison, report.typed
    known = (
        ("candidates", "Candidates", report.candidates),
        ("warnings", "Warnings and notes", report.warnings or report.notes),
        ("gates", "Gates", judged(report)),
        ("tuning", "Search", report.tuning),
        ("sensitivity", "Sensitivity", report.sensitivity),
        ("drift", "Drift against FP32", comparison is not None and comparison.outputs),
        ("samples", "Worst samples", evidence.cards(report)),
        ("classes", "Accuracy by class", evidence.by_class(report)),
        ("graph", "Graph", blocks.nodes(report)),
        ("layers", "Layer by layer", report.layers is not None and report.layers.layers),
        ("benchmark", "Speed", report.benchmark is not None),
        ("precision", "Precision", typed is not None and typed.decisions),
        ("calibration", "Calibration", report.calibration),
        ("pipeline", "Pipeline", report.stages),
        ("parity", "Export against the framework", report.parity),
        ("environment", "Environment and manifest", True),
    )
    return tuple((name, title) for name, title, there in known if there)


def first_divergent(report: Report) -> LayerDrift | None:
    """Return the first divergent layer, or None."""
    if report.layers is None:
        return None
    return next((layer for layer in report.layers.layers if layer.node == report.layers.jump), None)


def worst_layers(layers: Sequence[LayerDrift]) -> list[tuple[int, LayerDrift]]:
    """Return place in the graph and drift of the layers that add the most error, the worst first."""
    ranked = [(place, layer) for place, layer in numbered(layers) if layer.added > 0 or not _number(layer.sqnr)]
    return sorted(ranked, key=lambda each: -each[1].added if _number(each[1].added) else -math.inf)[:_WORST_LAYERS]


def _number(value: float) -> bool:
    """Return whether the value is defined: +inf dB is, for an identical tensor."""
    return not math.isnan(value) and value != -math.inf


def bounded(rows: Sequence[words.Judged]) -> bool:
    """Return whether any of the gates has bounds to draw."""
    return any(charts.interval(each.gate) for each in rows)


def numbered(layers: Sequence[LayerDrift]) -> list[tuple[int, LayerDrift]]:
    """Return the layers with their places in the graph, from 1."""
    return list(enumerate(layers, 1))


def points(candidates: Sequence[CandidateReport]) -> list[charts.Point]:
    """Return size and worst SQNR of the candidates that have both."""
    found = []
    for each in candidates:
        sqnr = [output.values["sqnr"] for output in each.comparison.outputs if "sqnr" in output.values]
        if sqnr and each.size_bytes > 0 and drawable(each.size_bytes):
            found.append(charts.Point(each.name, each.size_bytes, min(sqnr), each.pareto))
    return found[:_MAX_POINTS]


def latencies(timings: Sequence[Timing]) -> list[charts.Series]:
    """Return the median latency over batch size."""
    return _series(timings, lambda timing: timing.p50)


def throughputs(timings: Sequence[Timing]) -> list[charts.Series]:
    """Return the throughput in samples per second over batch size."""
    return _series(timings, lambda timing: timing.throughput)


def _series(timings: Sequence[Timing], what: Callable[[Timing], float]) -> list[charts.Series]:
    """Return one series per target, with and without copies if both were measured, for at least two batch sizes."""
    both = len({timing.copies for timing in timings}) > 1
    lines: dict[str, list[tuple[float, float]]] = {}
    for timing in sorted(timings, key=lambda each: each.batch):
        name = timing.target + (" with copies" if both and timing.copies else "")
        lines.setdefault(name, []).append((timing.batch, what(timing)))
    found = [charts.Series(name, tuple(line)) for name, line in lines.items()]
    return found if len({timing.batch for timing in timings}) > 1 else []


def sampled(comparison: Comparison) -> list[OutputDrift]:
    """Return the outputs that have results per sample."""
    return [output for output in comparison.outputs if output.worst or countable(output.spread)]


def countable(spread: Spread | None) -> bool:
    """Return whether a histogram has any counts to draw."""
    if spread is None or len(spread.edges) != len(spread.counts) + 1:
        return False
    return any(spread.counts) and all(map(drawable, (*spread.edges, *spread.counts)))


def histograms(tensors: Sequence[CalibratedTensor]) -> list[CalibratedTensor]:
    """Return the tensors that get a histogram."""
    return [each for each in tensors if countable(each.spread) and drawable(each.amax)][:_MAX_HISTOGRAMS]


def sqnr(noise: float) -> str:
    """Convert an error-to-signal ratio to an SQNR in decibels."""
    return words.decibels(-10 * math.log10(noise) if noise > 0 else math.inf if noise == 0 else math.nan)


def seconds(value: float) -> str:
    """Format a duration: `0.42 s`, `3 min 20 s`, `2 h 05 min`."""
    if not math.isfinite(value) or value < 60:
        return f"{value:.2f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
