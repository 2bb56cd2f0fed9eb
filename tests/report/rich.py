"""Report with every section that a page can have: layers, calibration, a benchmark, several candidates."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

from report.reports import COMPARISON, ENGINE, PASSED, TYPED

from trtopt.types import (
    Answer,
    BatchLimit,
    BatchProbe,
    Benchmark,
    BenchTarget,
    CalibratedTensor,
    CandidateReport,
    ClassAccuracy,
    Classification,
    ClassScore,
    Comparison,
    Confusion,
    Decision,
    EngineLayer,
    Exhibit,
    GateResult,
    Interval,
    LayerDrift,
    Layers,
    LayerTimes,
    OutputDrift,
    Report,
    Spread,
    StageOutcome,
    Table,
    Timing,
    WorstSample,
)

DROP = GateResult(
    output="logits",
    metric="top1",
    value=2.3,
    limit=1.0,
    verdict="fail",
    reason="top-1 accuracy drops by 2.30 points (76.10 % -> 73.80 %, McNemar p 0.0004), "
    "95 % bounds 1.12 to 3.48, limit 1 %",
    low=1.12,
    high=3.48,
)
OPEN = GateResult(
    output="logits",
    metric="top5",
    value=0.8,
    limit=1.0,
    verdict="inconclusive",
    reason="FP32's top-1 is not among the candidate's top 5 on 0.80 % of samples, 95 % bounds 0.34 to 1.57, limit 1 %: "
    "1000 samples are too few to tell, about 12400 would settle it",
    low=0.34,
    high=1.57,
    needed=12_400,
)
COSINE = GateResult(
    output="embedding",
    metric="cosine",
    value=0.9971,
    limit=0.99,
    verdict="pass",
    reason="cosine is 0.9971, must be at least 0.99",
)
SPREAD = Spread(
    edges=tuple(float(edge) for edge in range(4, 41)),
    counts=(1, 0, 0, 1, 2, 1, 3, 5, 8, 9, 14, 18, 25, 34, 40, 52, 61, 70, 82, 90, 88, 80, 71, 60, 48, 41, 30, 22, 15,
            10, 8, 5, 3, 2, 0, 1),
)  # fmt: skip
WORST = tuple(
    WorstSample(
        sample=f"val/n0{1440764 + 7 * place}/ILSVRC2012_val_{293 + 71 * place:08}.JPEG",
        index=293 + 71 * place,
        sqnr=4.2 + 1.3 * place,
        note="another class than FP32, only FP32 right" if place < 3 else "same class, both right",
    )
    for place in range(10)
)


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGMAAQAABQABoIJXOQAAAABJRU5ErkJggg=="
)
EXHIBITS = tuple(
    Exhibit(
        sample=worst.sample,
        index=worst.index,
        label="tench",
        image=PIXEL if place % 2 == 0 else "",
        inputs="" if place % 2 == 0 else "pixels: 0.1, 0.2, … (150528 values)",
        answers=(
            Answer(
                output="logits",
                fp32=(ClassScore(index=0, name="tench", score=9.5), ClassScore(index=7, name="cock", score=1.25)),
                candidate=(ClassScore(index=7 * (place < 3), name="cock" if place < 3 else "tench", score=6.5),),
                figures={"sqnr": worst.sqnr, "max_abs": 0.5},
            ),
            Answer(output="embedding", fp32_values="0.5, 0.25", candidate_values="0.5, 0.2", figures={"sqnr": 22.4}),
        ),
    )
    for place, worst in enumerate(WORST[:8])
)
BY_CLASS = Classification(
    classes=(
        ClassAccuracy(index=0, name="tench", samples=60, fp32=50, candidate=44),
        ClassAccuracy(index=7, name="", samples=40, fp32=30, candidate=31),
    ),
    found=2,
    names={"3": "shark"},
    confusions=(
        Confusion(label=0, chosen=7, fp32=6, candidate=11),
        Confusion(label=7, chosen=0, fp32=10, candidate=8),
        Confusion(label=0, chosen=3, fp32=4, candidate=5),
        Confusion(label=7, chosen=3, fp32=0, candidate=1),
    ),
)


def layers(count: int, *, damaged: int) -> Layers:
    """Return drift that grows slowly, with one divergent layer."""
    chance = random.Random(count)
    found, before = [], 52.0
    for place in range(count):
        loss = 24.0 if place == damaged else chance.uniform(-0.9, 1.0) * min(1.0, 100 / count)
        after = min(max(before - loss, 9.0), 60.0)
        op = ("Conv", "Relu", "Add", "MatMul")[place % 4]
        found.append(
            LayerDrift(
                node=f"/layer{place // 12}/block.{place % 12}/{op.lower()}/{op}",
                op=op,
                tensor=f"/layer{place // 12}/block.{place % 12}/{op.lower()}/{op}_output_0",
                precision="int8" if op in ("Conv", "MatMul") else "fp16" if place % 3 else "fp32",
                sqnr=math.inf if place == 0 else after,
                sqnr_in=math.inf if place == 0 else before,
                added=0.0 if place == 0 else max(10 ** (-after / 10) - 10 ** (-before / 10), 0.0),
            )
        )
        before = after
    jump = found[damaged].node
    reason = f"{jump} adds noise of -27.0 dB of its output's energy even to FP32's own inputs"
    return Layers(layers=tuple(found), jump=jump, reason=reason, samples=32, data="eval.npz")


def decisions(count: int) -> tuple[Decision, ...]:
    """Return a decision, with its reason, for each node of `layers`."""
    reasons = {"int8": "quantized", "fp16": "not quantized by rule: TensorRT fuses it", "fp32": "its range leaves fp16"}
    return tuple(
        Decision(node=layer.node, op=layer.op, precision=layer.precision, reason=reasons[layer.precision])
        for layer in layers(count, damaged=count // 3).layers
    )


def tensor(place: int, bins: int = 2048) -> CalibratedTensor:
    """Return an activation with a long tail."""
    width = 0.01 * (1 + place)
    counts = tuple(int(400_000 * math.exp(-bin / (60 + 12 * place))) + (bin % 97 == 0) for bin in range(bins))
    return CalibratedTensor(
        tensor=f"/layer{place}/block.{place}/conv/Conv_output_0",
        method="entropy",
        amax=width * 900,
        largest=width * bins,
        clipped=0.00042 * (place + 1),
        noise=0.011 / (place + 1),
        spread=Spread(edges=tuple(width * edge for edge in range(bins + 1)), counts=counts),
    )


def timing(target: str, batch: int, *, base: float) -> Timing:
    """Return a latency that grows with the batch size, and the numbers derived from it."""
    latency, speedup = base * (0.6 + 0.4 * batch), 1.9 / base if base < 1.9 else math.nan
    return Timing(
        target=target, batch=batch, copies=True, iterations=1200, mean=latency * 1.01, p50=latency, p90=latency * 1.05,
        p95=latency * 1.09, p99=latency * 1.2, noise=0.004, throughput=1000 * batch / latency,
        readings={"cpu_cores": 1.02, "gpu_power": 412.0, "process_memory": 2.4e9},
        speedup=speedup, parts={"copy_in": 0.02 * batch, "compute": 0.9 * latency, "copy_out": 0.01},
        bounds={"p99": Interval(low=latency, high=math.inf), "speedup": Interval(low=3.41, high=3.49)},
    )  # fmt: skip


ENGINE_LAYERS = (
    EngineLayer(name="Reformatting CopyNode for Input Tensor 0 to conv1 + relu1", type="Reformat", precision="fp32",
                tactic="0x00000000000003e8", nodes=("conv1",), apart="reformat"),
    EngineLayer(name="conv1 + relu1", type="CaskConvolution", precision="int8", nodes=("conv1", "relu1"),
                tactic="sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw"),
    EngineLayer(name="PWN(gelu)", type="PointWiseV2", precision="fp16", tactic="", nodes=("gelu",), apart="pointwise"),
)  # fmt: skip


BENCHMARK = Benchmark(
    targets=(
        BenchTarget(name="fp32", path=Path("out/fp32.engine"), ran="TensorRT 11.0, NVIDIA H200", load=0.41),
        BenchTarget(name="int8", path=Path("out/model.engine"), ran="TensorRT 11.0, NVIDIA H200", load=0.23),
    ),
    timings=tuple(
        timing(name, 2**power, base=base) for name, base in (("fp32", 1.9), ("int8", 0.55)) for power in range(6)
    ),
    gates=(
        GateResult(output="", metric="speedup", value=3.45, limit=2.0, verdict="pass", low=3.41, high=3.49,
                   reason="int8 is 3.45 times as fast as fp32 at batch 32, must be at least 2"),
    ),
    verdict="pass",
    tables=(Table(title="by rate", head=("requests/s", "p99"), rows=(("10", "4.5"), ("100", "9.25"))),),
    layers=LayerTimes(batch=32, ms={layer.name: 0.11 * (1 + place % 4) for place, layer in enumerate(ENGINE_LAYERS)}),
    limit=BatchLimit(
        target="int8", device="cuda", batch=192, limited_by="memory",
        why="batch 256 takes 81.3 GB of 80 GB", memory_limit=80_000_000_000,
        latency_limit=math.nan, total=61_400_000_000, base=500_000_000, weights=25_900_000, inputs_outputs=115_000_000,
        bytes_fixed=700_000_000, bytes_per_sample=3.16e8,
        probes=(BatchProbe(batch=256, memory=0, latency=math.nan, failed="out of memory"),
                BatchProbe(batch=192, memory=61_400_000_000, latency=44.1)),
    ),
)  # fmt: skip
DRIFT = replace(
    COMPARISON,
    outputs=(
        OutputDrift(
            output="logits",
            kind="scores",
            values={"accuracy_fp32": 76.1, "accuracy": 73.8, "top1": 93.4, "top5": 99.2, "cosine": 0.98123,
                    "sqnr": 14.21, "rmse": 0.4231, "max_abs": 6.113, "mean_abs": 0.2957, "nonfinite": 0.0},
            counts={"samples": 1000, "agree": 934, "top5": 992, "both": 720, "only_fp32": 41, "only_candidate": 18},
            spread=SPREAD,
            worst=WORST,
            by_class=BY_CLASS,
        ),
        OutputDrift(
            output="embedding",
            kind="values",
            values={"cosine": 0.9971, "sqnr": 22.4, "rmse": 0.0112, "max_abs": 0.32, "nonfinite": 0.0},
        ),
    ),
    gates=(DROP, OPEN, COSINE),
    verdict="fail",
    exhibits=EXHIBITS,
)  # fmt: skip


def stage(name: str, seconds: float, summary: str, status: str = "ran") -> StageOutcome:
    return StageOutcome(name=name, status=status, seconds=seconds, summary=summary)


def rich(count: int) -> Report:
    """Return the report of a failed conversion of a model with `count` layers, with all details."""
    return replace(
        PASSED,
        verdict="fail",
        model="resnet50/model.onnx",
        stages=(
            stage("export", 0.0, "resnet50/model.onnx, opset 17", "cached"),
            stage("prepare", 1.24, "161 nodes become 122: 53 batch normalizations folded, 8 constants"),
            stage("observe", 6.02, "ranges of 124 tensors over 512 samples"),
            stage("calibrate", 41.8, "entropy over 512 samples, 124 tensors"),
            stage("precision", 0.66, "int8 where TensorRT has kernels, the rest in fp16"),
            stage("build", 138.4, "TensorRT 11.0, 25.9 MB"),
            stage("compare", 22.7, "1000 samples, top-1 73.80 %"),
        ),
        typed=replace(TYPED, decisions=decisions(count)),
        engine=replace(ENGINE, size_bytes=25_900_000, layers=ENGINE_LAYERS),
        comparison=DRIFT,
        layers=layers(count, damaged=count // 3),
        calibration=tuple(tensor(place) for place in range(6)),
        benchmark=BENCHMARK,
        environment={"trtopt": "0.1.0", "python": "3.12.4", "tensorrt": "11.0.0", "gpu": "NVIDIA H200, driver 580.65",
                     "system": "Linux 6.8 x86_64"},
    )  # fmt: skip


def candidate(name: str, size: int, sqnr: float, *, latency: float, pareto: bool) -> CandidateReport:
    output = replace(DRIFT.outputs[0], values={**DRIFT.outputs[0].values, "sqnr": sqnr, "accuracy": 76.0 - 20 / sqnr})
    verdict = "pass" if sqnr > 20 else "fail"
    comparison: Comparison = replace(
        DRIFT, candidate=name, outputs=(output,), gates=(replace(DROP, verdict=verdict),), verdict=verdict
    )
    return CandidateReport(
        name=name, precision=name.split("-")[0].strip("/"), size_bytes=size, comparison=comparison, latency=latency,
        latency_batch=8, pareto=pareto,
    )  # fmt: skip


SEVERAL = replace(
    PASSED,
    command="compare",
    precision="",
    typed=None,
    engine=None,
    comparison=None,
    verdict="fail",
    candidates=(
        candidate("fp16/", 51_200_000, 61.0, latency=1.21, pareto=True),
        candidate("bf16/", 51_200_000, 43.0, latency=1.23, pareto=False),
        candidate("int8-entropy/", 25_900_000, 31.4, latency=0.58, pareto=True),
        candidate("int8-minmax/", 25_900_000, 14.2, latency=0.58, pareto=False),
        candidate("fp8/", 26_100_000, 34.9, latency=0.61, pareto=True),
    ),
)
RICH = rich(120)
UNSETTLED = replace(DRIFT, gates=(OPEN, COSINE), verdict="inconclusive")
PARTLY_OPEN = replace(RICH, verdict="inconclusive", layers=None, comparison=UNSETTLED)
PARTS = {
    name: replace(report, calibration=report.calibration and (tensor(0, bins=4),))
    for name, report in (("rich", rich(12)), ("several", SEVERAL), ("inconclusive", PARTLY_OPEN))
}
"""Report with every section, but few numbers."""
