"""Quality on the digits sample: each INT8 calibration method and FP16, compared with FP32 on 1,000 labelled digits.

    python benchmarks/digits.py

Rows marked "plain" are without equalization and bias correction. The typed graphs run in onnxruntime on the CPU (16-bit
rounding simulated); TensorRT does not run.

Touches: a temporary folder; prints a table.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trtopt.calibrate import AUTO, method_names
from trtopt.commands.convert import convert
from trtopt.plan import BuildPlan, ConvertPlan, DataPlan

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    table = Table(title="digits, 1,000 labelled samples; typed graph in onnxruntime, CPU")
    for column in ("precision", "method", "plain", "accuracy FP32", "accuracy", "agreement", "SQNR"):
        table.add_column(column, justify="right")
    runs = [("fp16", AUTO, False)]
    runs += [("int8", method, plain) for method in (AUTO, *method_names()) for plain in (False, True)]
    for precision, method, plain in runs:
        with tempfile.TemporaryDirectory() as folder:
            plan = ConvertPlan(
                source=ROOT / "samples/digits/model.onnx",
                precision=precision,
                run_dir=Path(folder),
                calib=DataPlan(source=str(ROOT / "calibration/digits")),
                data=DataPlan(source=str(ROOT / "samples/digits/eval.npz")),
                method=method,
                equalization=not plain,
                bias_correction=not plain,
                build=BuildPlan(backend="onnxruntime"),
            )
            report, _ = convert(plan)
        assert report.comparison is not None
        values = report.comparison.outputs[0].values
        table.add_row(
            precision,
            method if precision == "int8" else "-",
            "yes" if plain else "",
            f"{values['accuracy_fp32']:.2f} %",
            f"{values['accuracy']:.2f} %",
            f"{values['top1']:.2f} %",
            f"{values['sqnr']:.1f} dB",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
