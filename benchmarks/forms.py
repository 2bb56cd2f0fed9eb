"""One network in several forms: is INT8 placed and measured alike, however an exporter wrote the graph?

    python benchmarks/forms.py ZOO [--models mnist ...] [--opsets 17 21] [--batches 1 8] [--calib N] [--eval N]

Each model of `zoo.py` is converted as it is, at other opsets, and with a fixed batch where it has a batch axis. onnx's
version converter brings it to an opset, or where it cannot, to a lower one trtopt itself. Prints one table. All figures
are onnxruntime's, on the typed graph: evidence about graphs, not about engines.

Touches: a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from peers import flags
from tasks import TASKS, UNBATCHED, chosen, feeds

from trtopt.commands.convert import convert
from trtopt.engine.onnxruntime import open_runner
from trtopt.graph.older import lower_opset
from trtopt.plan import BuildPlan, ConvertPlan, DataPlan
from trtopt.shapes import parse_shapes

Feed = Mapping[str, np.ndarray[Any, Any]]
KINDS = {"Conv": "Conv", "ConvTranspose": "Conv", "Gemm": "MatMul", "MatMul": "MatMul"}
"""Weighted operators by kind: a linear layer may be a Gemm or a MatMul."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A network in one form, with its samples.

    `shapes` are `--shape` flags. `calib` and `data` are files or folders, as `--calib` and `--data`.
    """

    model: Path
    calib: Path
    data: Path
    shapes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The result of a conversion.

    Attributes:
        sqnr: the least SQNR of the floating-point outputs, in dB.
        weighted: the number of weighted operators by kind.
        quantized: the number of quantized operators by kind, with those that are not weighted.
        reasons: why weighted operators are not quantized, counted.
    """

    sqnr: float
    weighted: Counter[str]
    quantized: Counter[str]
    reasons: Counter[str]


def measure(form: Form, precision: str, run_dir: Path, evaluated: Iterable[Feed], *, plain: bool = False) -> Measured:
    """Convert a network, and compare the typed graph with the given one on some feeds.

    If it is `plain`, nothing is chosen by trials: neither a method, nor equalization, bias correction or the guard.
    """
    plan = ConvertPlan(
        method="minmax" if plain else "auto",
        equalization=not plain,
        bias_correction=not plain,
        guard=not plain,
        source=form.model,
        precision=precision,
        run_dir=run_dir,
        calib=DataPlan(source=str(form.calib)) if precision != "fp16" else None,
        data=DataPlan(source=str(form.data)),
        compare=False,
        shapes=parse_shapes(form.shapes),
        build=BuildPlan(backend="onnxruntime"),
    )
    report, _ = convert(plan, lambda _: None)
    assert report.typed is not None
    weighted, quantized, reasons = Counter[str](), Counter[str](), Counter[str]()
    for decision in report.typed.decisions:
        kind = KINDS.get(decision.op, decision.op)
        weighted[kind] += decision.op in KINDS
        quantized[kind] += decision.precision == precision and precision in ("int8", "fp8")
        if decision.op in KINDS and decision.precision != precision:
            reasons[f"{decision.op}: {decision.reason}"] += 1
    return Measured(
        sqnr=sqnr(form.model, report.typed.onnx.path, evaluated), weighted=+weighted, quantized=+quantized,
        reasons=reasons,
    )  # fmt: skip


def sqnr(reference: Path, candidate: Path, evaluated: Iterable[Feed]) -> float:
    """Return the least SQNR of the floating-point outputs, in dB; minus infinity if one is not finite.

    Infinities that are the same in both are left out, and so are masks.
    """
    exact, quantized = open_runner(reference).run, open_runner(candidate).run
    energies: dict[str, Any] = {}
    for feed in evaluated:
        wanted, found = exact(feed), quantized(feed)
        for name, array in wanted.items():
            if array.dtype.kind == "f":
                x, y = array.astype(np.float64), found[name].astype(np.float64)
                counted = ~((x == y) & (np.abs(x) > 1e9))
                noise = np.square((x - y)[counted]).sum()
                energies[name] = energies.get(name, 0) + np.array([np.square(x[counted]).sum(), noise])
    ratios = [10 * np.log10(signal / max(noise, 1e-30)) if np.isfinite(noise) else -np.inf
              for signal, noise in energies.values() if signal]  # fmt: skip
    return float(min(ratios))


def share(measured: Measured) -> str:
    """Return how many of the weighted operators are quantized."""
    return f"{sum(measured.quantized[kind] for kind in measured.weighted)} of {measured.weighted.total()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model of the zoo in one form.

    `model` is its file, or the reason why there is none. `batch` is the fixed batch, or 0.
    """

    title: str
    model: Path | str
    batch: int = 0


def variants(args: argparse.Namespace, name: str, folder: Path) -> Iterator[Variant]:
    """Yield the forms of a model, those that must be written in `folder`."""
    source = args.zoo / f"{name}.onnx"
    proto = onnx.load(source)
    own = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    yield Variant(title=f"as it is (opset {own})", model=source)
    for opset in args.opsets:
        if opset != own:
            yield Variant(title=f"opset {opset}", model=at_opset(proto, opset, folder / f"{name}-{opset}.onnx"))
    for batch in () if name in UNBATCHED else args.batches:
        fixed = with_batch(proto, batch, folder / f"{name}-batch-{batch}.onnx")
        yield Variant(title=f"batch {batch}", model=fixed, batch=batch)


def at_opset(proto: onnx.ModelProto, opset: int, path: Path) -> Path | str:
    """Write a model at another opset and return the path; return the reason if it cannot be converted."""
    why = ""
    for convert_to in (onnx.version_converter.convert_version, lowered):
        try:
            converted = convert_to(proto, opset)
            onnx.checker.check_model(converted, full_check=True)
        except Exception as error:  # noqa: BLE001 - the converter's failures have many kinds
            why = why or str(error).strip().splitlines()[0][:80]
        else:
            onnx.save(converted, path)
            return path
    return why


def lowered(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a model at a lower opset, as trtopt writes it for an older TensorRT."""
    model = ir.from_proto(proto)
    lower_opset(model, opset)
    assert model.opset_imports[""] == opset, "trtopt only lowers it"
    return ir.to_proto(model)


def with_batch(proto: onnx.ModelProto, batch: int, path: Path) -> Path:
    """Write a model whose inputs and outputs have a fixed first axis, and return the path."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    del fixed.graph.value_info[:]
    for value in [*fixed.graph.input, *fixed.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(fixed, path)
    return path


def batched(single: Iterable[Feed], size: int) -> Iterator[Feed]:
    """Yield the feeds of single samples as feeds of `size` samples. A rest is left out."""
    rows = list(single)
    for start in range(0, len(rows) - size + 1, size):
        yield {key: np.concatenate([row[key] for row in rows[start : start + size]]) for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="folder that zoo.py filled")
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--opsets", nargs="*", type=int, default=[17, 21])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8], help="fixed batches, where there is a batch")
    parser.add_argument("--precisions", nargs="+", choices=["fp16", "int8"], default=["fp16", "int8"])
    parser.add_argument("--calib", type=int, default=0, metavar="N", help="calibrate on N samples, evenly spread")
    parser.add_argument("--eval", type=int, default=32, metavar="N", help="evaluate on N samples, evenly spread")
    args = parser.parse_args()
    titles = [f"{precision.upper()} dB" for precision in args.precisions]
    titles = ["model", "form", *titles, "quantized of weighted", "quantized by kind"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for name in args.models:
        with tempfile.TemporaryDirectory(prefix="trtopt-forms-") as folder:
            for variant in variants(args, name, Path(folder)):
                print(f"| {name} | {variant.title} | {row(args, name, variant, Path(folder))} |", flush=True)


def row(args: argparse.Namespace, name: str, variant: Variant, folder: Path) -> str:
    model = variant.model
    if isinstance(model, str):
        return f"not converted: {model} |" + " |" * len(args.precisions)
    files = {}
    for part, count in (("calib", args.calib), ("eval", args.eval)):
        files[part] = folder / f"{name}.{part}.npz"
        if not files[part].exists():
            subset(args.zoo, name, part, count, files[part])
    shapes = flags(args.zoo, name)
    if variant.batch:  # the shapes of the samples, with the fixed batch
        usual = [flag.rpartition("=") for flag in shapes]
        shapes = tuple(f"{key}={variant.batch}x{sizes.split(':')[0].partition('x')[2]}" for key, _, sizes in usual)
    form = Form(model=model, calib=files["calib"], data=files["eval"], shapes=shapes)
    evaluated: list[Feed] = list(feeds(args.zoo, name, "eval", args.eval))
    if variant.batch:
        evaluated = list(batched(evaluated, variant.batch))
    made = {}
    for precision in args.precisions:
        made[precision] = measure(form, precision, folder / f"{model.stem}-{precision}", evaluated)
    last = made[args.precisions[-1]]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(last.quantized.items()) if count)
    return " | ".join([*(f"{each.sqnr:.1f}" for each in made.values()), share(last), kinds])


def subset(zoo: Path, name: str, part: str, count: int, path: Path) -> None:
    """Write the samples that `chosen` selects to `path`."""
    rows = chosen(zoo, name, part, count)
    with np.load(zoo / f"{name}.{part}.npz") as archive:
        np.savez(path, allow_pickle=False, **{key: archive[key][rows] for key in archive.files})


if __name__ == "__main__":
    main()
