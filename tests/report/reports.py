"""Reports that the tests of several formats render."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from trtopt.types import (
    REPORT_SCHEMA,
    CandidateReport,
    Comparison,
    Decision,
    Engine,
    GateResult,
    LayerDrift,
    Layers,
    OnnxModel,
    OutputDrift,
    Report,
    StageOutcome,
    TensorSpec,
    TypedModel,
    WorstSample,
)

TOP1 = GateResult(
    output="logits",
    metric="top1",
    value=0.5,
    limit=1.0,
    verdict="pass",
    reason="top-1 accuracy drops by 0.50 points (97.40 % -> 96.90 %), limit 1",
    default=True,
)
SQNR = GateResult(
    output="boxes:0", metric="sqnr", value=12.5, limit=20.0, verdict="fail", reason="sqnr is 12.5 dB, must be 20 dB"
)
UNJUDGED = GateResult(
    output="", metric="equal", value=math.nan, limit=99.0, verdict="fail", reason="equal could not be evaluated"
)
MODEL = OnnxModel(
    path=Path("out/typed.onnx"),
    digest="d",
    opset=19,
    inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 3, 8, 8)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("n", 10)),),
)
TYPED = TypedModel(
    onnx=MODEL,
    precision="int8",
    rest="fp16",
    decisions=(
        Decision(node="stem", op="Conv", precision="int8", reason="quantized"),
        Decision(node="first", op="Conv", precision="fp16", reason="3 channels: fewer than 8"),
        Decision(node="norm", op="Softmax", precision="fp32", reason="its range leaves fp16"),
        Decision(node="relu", op="Relu", precision="fp16", reason="not quantized by rule"),
    ),
)
ENGINE = Engine(
    path=Path("out/model.engine"),
    digest="e",
    backend="tensorrt",
    builder="tensorrt_rtx 1.7.1",
    device="compute capability 8.9",
    size_bytes=2_500_000,
    audit={"int8": 7, "fp16": 10},
    audited="parsed network",
)
COMPARISON = Comparison(
    baseline="model.onnx",
    candidate="typed.onnx",
    baseline_ran="onnxruntime 1.31, CPU",
    candidate_ran="onnxruntime 1.31, CPU, 16-bit rounding simulated",
    data="eval.npz",
    samples=1000,
    labelled=True,
    outputs=(
        OutputDrift(
            output="logits",
            kind="scores",
            values={"accuracy_fp32": 97.4, "accuracy": 96.9, "top1": 99.0, "sqnr": math.inf, "nonfinite": 0.0},
        ),
        OutputDrift(
            output="boxes:0",
            kind="values",
            values={"cosine": 0.98, "sqnr": 12.5, "nonfinite": 0.0},
            worst=(
                WorstSample(sample="cat.png", index=4, sqnr=3.25, note="another class than FP32"),
                WorstSample(sample="dog.png", index=1, sqnr=8.0),
                WorstSample(sample="eel.png", index=2, sqnr=9.0),
            ),
        ),
    ),
    gates=(TOP1,),
    verdict="pass",
)
PASSED = Report(
    schema_version=REPORT_SCHEMA,
    command="convert",
    verdict="pass",
    model="model.onnx",
    precision="int8",
    run_dir=Path("out"),
    stages=(
        StageOutcome(name="prepare", status="ran", seconds=0.5, summary="29 nodes become 18"),
        StageOutcome(name="calibrate", status="cached", seconds=0.0, summary="entropy over 200 samples"),
    ),
    typed=TYPED,
    engine=ENGINE,
    comparison=COMPARISON,
    warnings=("eval.npz: recipe imagenet assumed",),
    environment={"python": "3.12"},
)
FAILED = replace(
    PASSED,
    verdict="fail",
    comparison=replace(COMPARISON, verdict="fail", gates=(TOP1, SQNR, UNJUDGED)),
)
EMPTY = replace(PASSED, verdict="fail", comparison=replace(COMPARISON, verdict="fail", gates=(), outputs=()))
UNCHECKED = replace(PASSED, verdict="unchecked", comparison=None)
NO_ENGINE = replace(
    PASSED,
    engine=None,
    stages=(
        StageOutcome(name="build", status="unavailable", seconds=0.0, summary="no TensorRT here. Install it: pip ..."),
    ),
)
OPEN = GateResult(
    output="logits",
    metric="top1",
    value=0.0,
    limit=1.0,
    verdict="inconclusive",
    reason="top-1 differs from FP32 on 0.00 % of samples, 95 % bounds 0.00 to 2.95, limit 1 %: 100 samples are too few "
    "to tell, about 300 would settle it",
    low=0.0,
    high=2.95,
    needed=300,
)
INCONCLUSIVE = replace(
    PASSED, verdict="inconclusive", comparison=replace(COMPARISON, verdict="inconclusive", gates=(OPEN,))
)
ALLOWED = replace(INCONCLUSIVE, allow_inconclusive=True)
BY_DEFAULT = replace(
    INCONCLUSIVE,
    comparison=replace(
        COMPARISON, verdict="inconclusive", gates=(replace(OPEN, default=True),), calibrated_on=COMPARISON.samples
    ),
)
"""Default gate that is inconclusive, on the calibration samples."""
LAYERS = Layers(
    layers=(
        LayerDrift(node="stem", op="Conv", tensor="a", precision="int8", sqnr=41.5, sqnr_in=math.inf, added=7e-5),
        LayerDrift(node="body", op="Conv", tensor="b", precision="int8", sqnr=0.5, sqnr_in=41.5, added=0.89),
        LayerDrift(node="head", op="Gemm", tensor="c", precision="fp16", sqnr=1.5, sqnr_in=0.5, added=0.01),
    ),
    jump="body",
    reason="the noise that it adds is 89 % of its output, 41 dB above the median of int8 layers",
    samples=8,
    data="eval.npz",
)
JUMPED = replace(FAILED, layers=LAYERS, list_worst=2)
COMPARED = replace(PASSED, command="compare", precision="", typed=None, engine=None, warnings=())

SEVERAL = replace(
    COMPARED,
    verdict="fail",
    comparison=None,
    candidates=(
        CandidateReport(
            name="out/fp16",
            precision="fp16",
            size_bytes=2_000_000,
            comparison=COMPARISON,
            latency=1.25,
            latency_batch=1,
            pareto=True,
        ),
        CandidateReport(
            name="out/int8",
            precision="int8",
            size_bytes=1_000_000,
            comparison=replace(COMPARISON, verdict="fail", gates=(TOP1, SQNR)),
            latency=math.nan,
            latency_batch=0,
            pareto=False,
        ),
    ),
)

NASTY = "a[/b]|`<i>&*_:grin:\x1b[2J\r\n%,::error::\\ \ud7ff\ufffe\x00é"
"""Name in a hostile model: markup of rich and Markdown, HTML, a terminal escape, characters invalid in XML."""

HOSTILE = replace(
    FAILED,
    list_worst=1,
    layers=replace(
        LAYERS,
        layers=(replace(LAYERS.layers[0], node=NASTY, op=NASTY, tensor=NASTY, precision=NASTY),),
        jump=NASTY,
        reason=NASTY,
        data=NASTY,
    ),
    model=NASTY,
    warnings=(NASTY,),
    run_dir=Path(NASTY.replace("\x00", "")),
    stages=(StageOutcome(name="build", status="ran", seconds=1.0, summary=NASTY),),
    typed=replace(TYPED, decisions=(Decision(node=NASTY, op=NASTY, precision="fp32", reason=NASTY),)),
    engine=replace(ENGINE, builder=NASTY, device=NASTY, audited=NASTY),
    comparison=replace(
        COMPARISON,
        data=NASTY,
        baseline_ran=NASTY,
        candidate_ran=NASTY,
        verdict="fail",
        outputs=(
            OutputDrift(
                output=NASTY,
                kind="values",
                values={"cosine": math.nan, "sqnr": -math.inf},
                worst=(WorstSample(sample=NASTY, index=0, sqnr=-math.inf, note=NASTY),),
            ),
        ),
        gates=(replace(SQNR, output=NASTY, reason=NASTY),),
    ),
)

_LONG = "&é" * 5000
_MANY = 3000
HUGE = replace(
    FAILED,
    warnings=(_LONG,) * _MANY,
    stages=tuple(StageOutcome(name=_LONG, status="ran", seconds=1.0, summary=_LONG) for _ in range(200)),
    typed=replace(
        TYPED,
        decisions=tuple(Decision(node=_LONG, op="Conv", precision="fp32", reason=f"{i}{_LONG}") for i in range(_MANY)),
    ),
    comparison=replace(
        COMPARISON,
        verdict="fail",
        outputs=tuple(
            OutputDrift(output=f"{i}{_LONG}", kind="values", values={"cosine": 0.1, "sqnr": 1.0}) for i in range(_MANY)
        ),
        gates=(*(replace(TOP1, output=f"{i}{_LONG}") for i in range(_MANY)), SQNR),
    ),
)

ALL = {
    "passed": PASSED,
    "failed": FAILED,
    "empty": EMPTY,
    "unchecked": UNCHECKED,
    "no-engine": NO_ENGINE,
    "compared": COMPARED,
    "inconclusive": INCONCLUSIVE,
    "allowed": ALLOWED,
    "by-default": BY_DEFAULT,
    "jumped": JUMPED,
    "several": SEVERAL,
    "hostile": HOSTILE,
}
