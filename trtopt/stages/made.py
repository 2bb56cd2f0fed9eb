"""The result of the stages up to the engine, with everything that it was made from.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtopt.errors import TrtoptError
from trtopt.plan import BuildPlan
from trtopt.stages.target import Target
from trtopt.types import CalibrationTable, Engine, Observation, OnnxModel, ShapeRange, Tuning, TypedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A typed graph and its engine.

    Attributes:
        baseline: the FP32 model that they are compared with.
        model: the prepared model, possibly equalized.
        target: the requested precision.
        table: the scales, if it has any.
        seen: statistics of the activations, if there were samples.
        typed: the typed graph.
        engine: the engine; None if it cannot be built on this machine.
        unable: why the engine could not be built.
        ranges: the shape ranges of the dynamic inputs.
        plan: the build options.
        tuning: the search that decided which nodes are quantized, if there was one.
    """

    baseline: OnnxModel
    model: OnnxModel
    target: Target
    table: CalibrationTable | None
    seen: Observation | None
    typed: TypedModel
    engine: Engine | None
    unable: TrtoptError | None
    ranges: tuple[ShapeRange, ...]
    plan: BuildPlan
    tuning: Tuning | None = None
