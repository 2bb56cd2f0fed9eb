"""Comparisons with FP32: drift, gates, layers.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trtopt.types.calibration import Spread

Verdict = Literal["pass", "fail", "inconclusive", "unchecked"]
"""Outcome of a gate or of a run.

`inconclusive` means that the measurements do not settle it. `unchecked` means that the user turned off the comparison
or set no gate. Neither counts as a pass; `trtopt.verdict` defines the consequences of each.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstSample:
    """A sample with a large error: its name, its index in the dataset, its SQNR, and a note.

    `sqnr` is in dB. It is NaN for an output whose values are not subtracted, such as boxes.
    """

    sample: str
    index: int
    sqnr: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """A class that a model chose: its index, its name (empty if unknown) and its score in the output."""

    index: int
    name: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One output of both models for one sample.

    Attributes:
        output: the output's name.
        fp32: FP32's classes with the highest scores, the highest first. Empty unless the output holds class scores.
        candidate: the same of the candidate.
        fp32_values: the beginning of FP32's values, as text. Empty for class scores.
        candidate_values: the same of the candidate.
        figures: metrics of this sample by name, such as `sqnr` in dB. Empty where values are not subtracted.
    """

    output: str
    fp32: tuple[ClassScore, ...] = ()
    candidate: tuple[ClassScore, ...] = ()
    fp32_values: str = ""
    candidate_values: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """One of the worst samples, with its input and what both models answered.

    Attributes:
        sample: the sample's name.
        index: its index in the dataset.
        label: the name or index of its class. Empty without labels.
        image: the input as a PNG or JPEG data URI of at most 20 kB. Empty unless an input is an image.
        inputs: the beginning of the sample's text, or of its inputs' values. Empty beside an image.
        answers: one per output.
    """

    sample: str
    index: int
    label: str
    image: str
    inputs: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAccuracy:
    """Samples of one class by label, and how many of them each model gets right. `name` is empty if unknown."""

    index: int
    name: str
    samples: int
    fp32: int
    candidate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Samples of one class for which a model chose another: how often FP32 did, and how often the candidate."""

    label: int
    chosen: int
    fp32: int
    candidate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """Accuracy by class, where the labels fit.

    Attributes:
        classes: the classes that have samples, by index; if there are too many, those with the largest losses.
        found: the number of classes that have samples.
        names: the names of other classes, by index as text, that `confusions` refers to.
        confusions: mistakes, the most frequent of the candidate first. All of them, if there are few classes.
    """

    classes: tuple[ClassAccuracy, ...]
    found: int
    names: Mapping[str, str]
    confusions: tuple[Confusion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDrift:
    """Difference between one output of the candidate and the same output of the baseline.

    Attributes:
        output: the output's name; for a custom metric, the function's name.
        kind: how the output was read: a module of `trtopt.compare.kinds`, or `own` for a custom metric.
        values: metric values by name.
        counts: the numbers of samples that statistics are based on: `samples`; for classes `agree` (both models chose
            the same class), `top5` and `chosen` (distinct classes that FP32 chose); with labels `both`, `only_fp32` and
            `only_candidate` (the model that was right); with labels of other classes `unfit` (the samples on which FP32
            is right, which is not better than guessing) and `contradicted` (1 if there are enough of them to tell). For
            integers `same` (samples that agree in most elements), for detections `boxes` (those of FP32), and for
            probabilities whose errors are `harmless` 1. For the class with the clearest loss `class` (its index; absent
            for all classes but the most frequent one together), FP32's `decisions` for it, those that the candidate
            `kept`, the samples `having` one, and the number of `groups` of decisions that were examined.
        first_bad: the first sample with a NaN or Inf.
        spread: histogram of the SQNR per sample in dB, without identical samples.
        worst: the samples with the lowest SQNR, the worst first.
        by_class: accuracy by class. None unless the labels fit.
    """

    output: str
    kind: str
    values: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict)
    first_bad: str = ""
    spread: Spread | None = None
    worst: tuple[WorstSample, ...] = ()
    by_class: Classification | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Result of one gate.

    Attributes:
        output: the output that was judged.
        metric: the metric's name.
        value: the measured value, in the metric's unit. NaN if it could not be evaluated.
        limit: the threshold, in the metric's unit.
        verdict: the outcome.
        reason: a sentence that explains the verdict.
        default: true for a default gate.
        low: lower confidence bound of `value`. NaN for a metric without sampling error.
        high: upper confidence bound of `value`. NaN for a metric without sampling error.
        needed: the number of samples that would settle an inconclusive verdict. 0 if unknown.
    """

    output: str
    metric: str
    value: float
    limit: float
    verdict: Verdict
    reason: str
    default: bool = False
    low: float = math.nan
    high: float = math.nan
    needed: int = 0

    @property
    def passed(self) -> bool:
        """True if the samples show that the threshold holds."""
        return self.verdict == "pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDrift:
    """Quantization error at the output of one node, compared with FP32.

    `sqnr` is that of the output `tensor` and `sqnr_in` the lowest of the node's inputs, both in dB. `added` is the
    error energy that this node adds, relative to the signal energy of its output.
    """

    node: str
    op: str
    tensor: str
    precision: str
    sqnr: float
    sqnr_in: float
    added: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Drift layer by layer, in graph order.

    `jump` is the first divergent node, or empty if there is none, and `reason` explains the choice. `data` and
    `samples` are the source and the number of the samples.
    """

    layers: tuple[LayerDrift, ...]
    jump: str
    reason: str
    samples: int
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDrift:
    """One output of an engine beside the same output of its typed graph in onnxruntime.

    Attributes:
        output: the output's name.
        metric: `sqnr` in dB, or `equal` in percent for integers.
        engine: the metric of the engine compared with FP32.
        graph: the metric of the graph compared with FP32.
        between: the metric of the engine compared with the graph.
    """

    output: str
    metric: str
    engine: float
    graph: float
    between: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDrift:
    """One output of a typed graph as users load it: in onnxruntime's default options, beside the simulation.

    `metric` is `sqnr` in dB, or `equal` in percent for integers. `loaded` and `simulated` are its values compared with
    FP32, on a few of the samples.
    """

    output: str
    metric: str
    loaded: float
    simulated: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFault:
    """The nodes that make an engine differ from its graph.

    Attributes:
        nodes: the nodes; the engine is right when they are kept in higher precision. Empty if none were found.
        builds: the number of engines that were built to find them.
        reason: a sentence on what was found.
    """

    nodes: tuple[str, ...] = ()
    builds: int = 0
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Drift of a candidate compared with the FP32 baseline, and the verdict.

    `baseline` and `candidate` are the models' names; `baseline_ran` and `candidate_ran` describe what actually ran, and
    where. The stage `compare` returns no `gates` and the verdict `unchecked`; `trtopt.compare.gate.judged` adds both,
    and `remarks` about outputs without a gate and the samples to look at first. `calibrated_on` is the number of
    samples on which the candidate was calibrated: they are not evidence for unseen data. If the candidate is an engine,
    `engine` compares it with its graph, and `graph_ran` says where that ran; `engine_unable` is the reason if it was
    not run on a machine that has what runs it. `loaded` is the typed graph in onnxruntime's default options, on a few
    samples; `loaded_ran` says where, or why it cannot run so. `exhibits` show some of the worst samples.
    """

    baseline: str
    candidate: str
    baseline_ran: str
    candidate_ran: str
    data: str
    samples: int
    labelled: bool
    outputs: tuple[OutputDrift, ...]
    gates: tuple[GateResult, ...] = ()
    verdict: Verdict = "unchecked"
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    calibrated_on: int = 0
    engine: tuple[EngineDrift, ...] = ()
    graph_ran: str = ""
    engine_unable: str = ""
    loaded: tuple[LoadedDrift, ...] = ()
    loaded_ran: str = ""
    exhibits: tuple[Exhibit, ...] = ()
