"""Whether an exported model still computes what its framework does, on the same inputs, in the metrics of `compare`.

Touches: nothing itself; the runner runs the model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trtopt.compare.gate import judge, verdict
from trtopt.compare.kinds.outputs import Array, Outputs
from trtopt.compare.limits import Gate, gate
from trtopt.compare.metrics import Metrics
from trtopt.compare.run import Runner
from trtopt.data.dataset import Dataset
from trtopt.errors import ModelError
from trtopt.types import Comparison, OutputDrift, ShapeRange, TensorSpec

LIMIT_DB = 80.0
"""Least SQNR of an exported output: a relative error of 1e-4. Rounding in another order leaves ten to a thousand times
less, and a wrong attribute or a lost operation far more.
"""

_SAMPLES = 8
_DRAWS = 2
_SEED = 0

Feed = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeds:
    """Inputs to check on: where they are from, in words; what they depend on; and the arrays, made when needed."""

    source: str
    digest: str
    draw: Callable[[], list[Feed]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The framework's side: the source's name, what ran it, and for each feed its outputs in the model's order."""

    name: str
    ran: str
    outputs: Sequence[Sequence[Array]]


def from_data(dataset: Dataset) -> Feeds:
    """Up to eight samples from all over a dataset; where samples may be joined, two of them joined as well."""
    count = len(dataset)
    places = sorted({round(i * (count - 1) / max(_SAMPLES - 1, 1)) for i in range(_SAMPLES)})

    def draw() -> list[Feed]:
        feeds = [dataset.load(place) for place in places]
        if dataset.batched and len(feeds) > 1:
            joined = {name: np.concatenate([feeds[0][name], feeds[-1][name]]) for name in feeds[0]}
            return [*feeds, joined]
        return [*feeds]

    return Feeds(source=f"{len(places)} samples of {dataset.source}", digest=dataset.digest, draw=draw)


def random(inputs: Sequence[TensorSpec], ranges: Sequence[ShapeRange]) -> Feeds:
    """Random inputs, the same ones each time, of the smallest and of the usual shapes: an export that has a size of its
    example written into it fails on one of them.

    Floats are normal; whole numbers are 0 or 1, the first of each row 1, so that they are valid ids and masks.
    """
    known = {entry.name: entry for entry in ranges}
    small = {spec.name: known[spec.name].min if spec.name in known else spec.shape for spec in inputs}
    usual = {spec.name: known[spec.name].opt if spec.name in known else spec.shape for spec in inputs}
    shapes = [small, usual] if small != usual else [usual]

    def draw() -> list[Feed]:
        generator = np.random.default_rng(_SEED)
        return [
            {spec.name: _draw(generator, spec.dtype, tuple(map(int, wanted[spec.name]))) for spec in inputs}
            for wanted in shapes
            for _ in range(_DRAWS)
        ]

    words = f"{_DRAWS * len(shapes)} random inputs (seed {_SEED})"
    return Feeds(source=words, digest=hashlib.sha256(repr((inputs, shapes, _SEED)).encode()).hexdigest(), draw=draw)


def check(reference: Reference, runner: Runner, feeds: Sequence[Feed], source: str) -> Comparison:
    """Return the drift of the exported model, run by `runner`, from the framework's outputs for the same feeds.

    Raises:
        ModelError: they differ in number or in shape.
        DataError: the exported model cannot be run on a feed.
    """
    metrics = Metrics({}, plain=True)
    for i, (feed, wanted) in enumerate(zip(feeds, reference.outputs, strict=True)):
        made = runner.run(feed)
        if len(made) != len(wanted):
            raise ModelError(
                f"the export of {reference.name} has {len(made)} outputs", why=f"the source itself has {len(wanted)}"
            )
        metrics.add(Outputs(reference=dict(zip(made, wanted, strict=True)), candidate=made, indices=(i,)))
    outputs = metrics.drifts([f"input {i}" for i in range(len(feeds))])
    gates = judge(outputs, [_gate(output) for output in outputs], len(feeds))
    return Comparison(
        baseline=reference.name,
        candidate="source.onnx",
        baseline_ran=reference.ran,
        candidate_ran=runner.where,
        data=source,
        samples=len(feeds),
        labelled=False,
        outputs=outputs,
        gates=gates,
        verdict=verdict(gates),
    )


def line(comparison: Comparison) -> str:
    """One line about the check."""
    errors = [output.values["sqnr"] for output in comparison.outputs if "sqnr" in output.values]
    worst = f", SQNR {min(errors):.0f} dB or better" if errors and math.isfinite(min(errors)) else ""
    worst = ", identical" if not worst and comparison.verdict == "pass" else worst
    return f"{comparison.baseline_ran} and onnxruntime on {comparison.data}: {comparison.verdict}{worst}"


def _gate(output: OutputDrift) -> Gate:
    return gate("equal", 100.0, output.output) if output.kind == "exact" else gate("sqnr", LIMIT_DB, output.output)


def _draw(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype.startswith(("float", "bfloat")):
        return generator.normal(size=shape).astype(dtype)
    values = generator.integers(0, 2, shape)
    values[..., :1] = 1
    return values.astype(dtype)
