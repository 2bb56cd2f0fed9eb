"""Check of an export: compare the outputs of the exported model with those of its framework, for the same inputs.

Touches: nothing itself; the runner runs the model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trtopt.compare.gate import judge, verdict
from trtopt.compare.gates import Gate, gate
from trtopt.compare.measures.outputs import Array, Outputs
from trtopt.compare.metrics import Metrics
from trtopt.compare.pair import Runner
from trtopt.data.dataset import Dataset
from trtopt.errors import ModelError
from trtopt.types import Comparison, OutputDrift, ShapeRange, TensorSpec
from trtopt.wording import counted

LIMIT_DB = 80.0
"""Lowest SQNR of an output that passes: a relative error of 1e-4. Rounding in another order causes errors that are ten
to a thousand times smaller. A wrong attribute or a missing operation causes far larger ones.
"""

_SAMPLES = 8
"""Number of samples of a dataset to check on."""
_DRAWS = 2
"""Number of random inputs per shape."""
_SEED = 0

Feed = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeds:
    """Inputs to check on.

    Attributes:
        source: a description for messages.
        digest: a digest of everything that the arrays depend on.
        draw: returns the arrays; called only if the result is not cached.
    """

    source: str
    digest: str
    draw: Callable[[], list[Feed]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Results of the framework.

    Attributes:
        name: the name of the source.
        ran: the framework that ran it.
        outputs: for each feed, the outputs in the order of the model.
    """

    name: str
    ran: str
    outputs: Sequence[Sequence[Array]]


def from_data(dataset: Dataset) -> Feeds:
    """Return up to eight samples spread over a dataset, and two of them joined if the dataset allows joining."""
    count = len(dataset)
    indices = sorted({round(i * (count - 1) / max(_SAMPLES - 1, 1)) for i in range(_SAMPLES)})

    def draw() -> list[Feed]:
        feeds: list[Feed] = [dataset.load(index) for index in indices]
        # A joined feed finds an export with a constant batch size.
        if dataset.batched and len(feeds) > 1:
            feeds.append({name: np.concatenate([feeds[0][name], feeds[-1][name]]) for name in feeds[0]})
        return feeds

    return Feeds(source=f"{counted(len(indices), 'sample')} of {dataset.source}", digest=dataset.digest, draw=draw)


def random(inputs: Sequence[TensorSpec], ranges: Sequence[ShapeRange]) -> Feeds:
    """Return random inputs of the smallest and of the usual shapes. They are the same each time.

    An export that contains a size of its example inputs as a constant fails for one of these shapes. Floats are drawn
    from the normal distribution. Integers are 0 or 1, and the first of each row is 1, so that they are valid ids and
    masks.

    Args:
        inputs: the model's inputs.
        ranges: the shape ranges of its dynamic inputs.
    """
    by_name = {entry.name: entry for entry in ranges}
    smallest, usual = {}, {}
    for spec in inputs:
        entry = by_name.get(spec.name)
        smallest[spec.name] = entry.min if entry else spec.shape
        usual[spec.name] = entry.opt if entry else spec.shape
    all_shapes = [smallest, usual] if smallest != usual else [usual]

    def draw() -> list[Feed]:
        generator = np.random.default_rng(_SEED)
        feeds: list[Feed] = []
        for shapes in all_shapes:
            for _ in range(_DRAWS):
                feeds.append(
                    {spec.name: _draw(generator, spec.dtype, tuple(map(int, shapes[spec.name]))) for spec in inputs}
                )
        return feeds

    return Feeds(
        source=f"{_DRAWS * len(all_shapes)} random inputs (seed {_SEED})",
        digest=hashlib.sha256(repr((inputs, all_shapes, _SEED)).encode()).hexdigest(),
        draw=draw,
    )


def check(reference: Reference, runner: Runner, feeds: Sequence[Feed], source: str) -> Comparison:
    """Return the drift of the exported model from the framework's outputs for the same feeds, with a verdict.

    Args:
        reference: the results of the framework.
        runner: runs the exported model.
        feeds: the inputs that both ran on.
        source: a description of the feeds.

    Raises:
        ModelError: the outputs differ in number or in shape.
        DataError: the exported model cannot be run on a feed.
    """
    metrics = Metrics({}, plain=True)
    for i, (feed, expected) in enumerate(zip(feeds, reference.outputs, strict=True)):
        outputs = runner.run(feed)
        if len(outputs) != len(expected):
            raise ModelError(
                f"the export of {reference.name} has {counted(len(outputs), 'output')}",
                why=f"the source itself has {len(expected)}",
            )
        metrics.add(Outputs(reference=dict(zip(outputs, expected, strict=True)), candidate=outputs, indices=(i,)))
    drifts = metrics.drifts([f"input {i}" for i in range(len(feeds))])
    gates = judge(drifts, [_gate(drift) for drift in drifts], len(feeds), defaults=False)
    return Comparison(
        baseline=reference.name,
        candidate="source.onnx",
        baseline_ran=reference.ran,
        candidate_ran=runner.where,
        data=source,
        samples=len(feeds),
        labelled=False,
        outputs=drifts,
        gates=gates,
        verdict=verdict(gates),
    )


def line(comparison: Comparison) -> str:
    """Return the summary line of the check, with the lowest SQNR of the outputs."""
    line = f"{comparison.baseline_ran} and onnxruntime on {comparison.data}: {comparison.verdict}"
    sqnrs = [output.values["sqnr"] for output in comparison.outputs if "sqnr" in output.values]
    if sqnrs and math.isfinite(min(sqnrs)):
        return f"{line}, SQNR at least {min(sqnrs):.0f} dB"
    return f"{line}, outputs are identical" if comparison.verdict == "pass" else line


def _gate(drift: OutputDrift) -> Gate:
    """Return the gate of an output: integers must be equal, floats must reach `LIMIT_DB`."""
    if drift.kind == "exact":
        return gate("equal", 100.0, drift.output)
    return gate("sqnr", LIMIT_DB, drift.output)


def _draw(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Return random values that are valid for any input of this dtype."""
    if dtype.startswith(("float", "bfloat")):
        return generator.normal(size=shape).astype(dtype)
    values = generator.integers(0, 2, shape)
    values[..., :1] = 1
    return values.astype(dtype)
