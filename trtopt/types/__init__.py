"""Values that flow through the pipeline: frozen dataclasses that depend on the standard library only.

    Source --export--> OnnxModel --prepare--> OnnxModel --calibrate--> CalibrationTable
    OnnxModel + CalibrationTable --precision--> TypedModel --build--> Engine
    OnnxModel + TypedModel/Engine --compare--> Comparison --report--> Report

Touches: nothing. The run store (`trtopt.store`) reads and writes these values.
"""

from trtopt.types.benchmark import BatchLimit, BatchProbe, Benchmark, BenchTarget, Interval, LayerTimes, Table, Timing
from trtopt.types.calibration import CalibratedTensor, CalibrationTable, Observation, Reading, Spread
from trtopt.types.comparison import (
    Answer,
    ClassAccuracy,
    Classification,
    ClassScore,
    Comparison,
    Confusion,
    EngineDrift,
    EngineFault,
    Exhibit,
    GateResult,
    LayerDrift,
    Layers,
    LoadedDrift,
    OutputDrift,
    Verdict,
    WorstSample,
)
from trtopt.types.engine import Engine, EngineLayer, Rejection, Support, TargetFiles
from trtopt.types.model import Dim, OnnxModel, ShapeRange, TensorSpec
from trtopt.types.precision import EQUALIZED, GUARDED, NOT_WEIGHTED, Decision, Guard, Keep, Only, TypedModel
from trtopt.types.prediction import Predictions
from trtopt.types.report import (
    READABLE_SCHEMAS,
    REPORT_SCHEMA,
    UNLIKE,
    Cache,
    CandidateReport,
    Failure,
    Report,
    StageOutcome,
)
from trtopt.types.tuning import (
    Choice,
    EngineTimes,
    Half,
    SensitiveGroup,
    Sensitivity,
    TimedLayer,
    TunedGroup,
    Tuning,
)

__all__ = [
    "EQUALIZED",
    "GUARDED",
    "NOT_WEIGHTED",
    "READABLE_SCHEMAS",
    "REPORT_SCHEMA",
    "UNLIKE",
    "Answer",
    "BatchLimit",
    "BatchProbe",
    "BenchTarget",
    "Benchmark",
    "Cache",
    "CalibratedTensor",
    "CalibrationTable",
    "CandidateReport",
    "Choice",
    "ClassAccuracy",
    "ClassScore",
    "Classification",
    "Comparison",
    "Confusion",
    "Decision",
    "Dim",
    "Engine",
    "EngineDrift",
    "EngineFault",
    "EngineLayer",
    "EngineTimes",
    "Exhibit",
    "Failure",
    "GateResult",
    "Guard",
    "Half",
    "Interval",
    "Keep",
    "LayerDrift",
    "LayerTimes",
    "Layers",
    "LoadedDrift",
    "Observation",
    "Only",
    "OnnxModel",
    "OutputDrift",
    "Predictions",
    "Reading",
    "Rejection",
    "Report",
    "SensitiveGroup",
    "Sensitivity",
    "ShapeRange",
    "Spread",
    "StageOutcome",
    "Support",
    "Table",
    "TargetFiles",
    "TensorSpec",
    "TimedLayer",
    "Timing",
    "TunedGroup",
    "Tuning",
    "TypedModel",
    "Verdict",
    "WorstSample",
]
