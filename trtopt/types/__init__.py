"""Values that flow through the pipeline: frozen dataclasses that depend on the standard library only.

    Source --export--> OnnxModel --prepare--> OnnxModel --calibrate--> CalibrationTable
    OnnxModel + CalibrationTable --precision--> TypedModel --build--> Engine
    OnnxModel + TypedModel/Engine --compare--> Comparison --report--> Report

Touches: nothing. The run store (`trtopt.store`) reads and writes these values.
"""

from trtopt.types.benchmark import BatchLimit, BatchProbe, Benchmark, BenchTarget, Interval, Timing
from trtopt.types.calibration import CalibratedTensor, CalibrationTable, Observation, Spread
from trtopt.types.comparison import (
    Comparison,
    EngineDrift,
    EngineFault,
    GateResult,
    LayerDrift,
    Layers,
    LoadedDrift,
    OutputDrift,
    Verdict,
    WorstSample,
)
from trtopt.types.engine import Engine, Rejection, Support
from trtopt.types.model import Dim, OnnxModel, ShapeRange, TensorSpec
from trtopt.types.precision import Decision, Guard, Keep, Only, TypedModel
from trtopt.types.report import REPORT_SCHEMA, Cache, CandidateReport, Failure, Report, StageOutcome
from trtopt.types.tuning import Choice, Half, SensitiveGroup, Sensitivity, TunedGroup, Tuning

__all__ = [
    "REPORT_SCHEMA",
    "BatchLimit",
    "BatchProbe",
    "BenchTarget",
    "Benchmark",
    "Cache",
    "CalibratedTensor",
    "CalibrationTable",
    "CandidateReport",
    "Choice",
    "Comparison",
    "Decision",
    "Dim",
    "Engine",
    "EngineDrift",
    "EngineFault",
    "Failure",
    "GateResult",
    "Guard",
    "Half",
    "Interval",
    "Keep",
    "LayerDrift",
    "Layers",
    "LoadedDrift",
    "Observation",
    "Only",
    "OnnxModel",
    "OutputDrift",
    "Rejection",
    "Report",
    "SensitiveGroup",
    "Sensitivity",
    "ShapeRange",
    "Spread",
    "StageOutcome",
    "Support",
    "TensorSpec",
    "Timing",
    "TunedGroup",
    "Tuning",
    "TypedModel",
    "Verdict",
    "WorstSample",
]
