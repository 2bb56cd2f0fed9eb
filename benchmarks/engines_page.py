"""The table of docs/engines.md, from the files that `engines.py` wrote: python benchmarks/engines_page.py

Touches: rewrites the part of docs/engines.md between the two marks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/engines.md"
BEGIN, END = "<!-- made by benchmarks/engines_page.py -->\n", "<!-- end -->\n"
FILES = {
    "efflite0": "EfficientNet-Lite0",
    "efflite0-tuned": "EfficientNet-Lite0, other machine",
    "efflite0-other": "EfficientNet-Lite0, third machine",
    "efflite0-unlabelled": "EfficientNet-Lite0 without labels, 7 nodes in FP16",
    "resnet50": "ResNet-50, random weights",
    "resnet50-other": "ResNet-50, random weights, other machine",
    "resnet50-qdq": "ResNet-50, random weights, third machine",
    "digits": "digits sample",
    "digits-wrong": "digits sample, other machine",
    "mnist": "mnist",
    "tf_mobilenet": "`samples/tf_mobilenet`",
    "minilm": "MiniLM, length 64",
    "bert": "BERT-base, random weights, length 128",
    "bert-peers": "BERT-base, random weights, other machine",
}
"""Files in `benchmarks/engines`, in the order of the table, with the names of their networks."""
ROWS = {
    "fp32": "FP32",
    "tf32": "TF32",
    "fp16": "FP16",
    "int8": "INT8",
    "tuned": "INT8 by `tune --speed engine`",
    "native": "TensorRT's own INT8",
    "qdq": "onnxruntime's Q/DQ",
}
BATCHES = (1, 8, 16, 32, 64)
HEAD = ("network", "precision", "SQNR", "score", *map(str, BATCHES), "GPU", "MB", "activations", "reformats")


def table(folder: Path = ROOT / "benchmarks/engines") -> str:
    """Return the table in Markdown: one line for each engine."""
    lines = [HEAD, ["---"] * 4 + ["---:"] * (len(HEAD) - 4)]
    for file, title in FILES.items():
        found = json.loads((folder / f"{file}.json").read_text())
        for number, kind in enumerate(kind for kind in ROWS if kind in found["rows"]):
            lines.append([title if number == 0 else "", ROWS[kind], *_cells(found["rows"][kind])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    if "sqnr" not in row:
        yield f"none: {row['failed'][0]}"
        yield from [""] * (len(HEAD) - 3)
        return
    yield " ".join(f"{value:.2f} dB" for value in row["sqnr"].values())
    metric, score = row.get("score") or ("top-1 %", row.get("accuracy"))
    yield f"{metric.removesuffix(' %')} {score:.1f} %" if score is not None else ""
    for batch in BATCHES:
        time = row["ms"].get(str(batch))
        yield f"{time[0]:.4f}" if time else "–"
    loads = [row.get("load", {}).get(str(batch)) for batch in BATCHES if batch <= 32]
    yield next((f"{load:.0f} %" for load in reversed(loads) if load is not None), "–")
    yield f"{row['bytes'] / 1e6:.1f}"
    yield f"{row['memory']['activations'] / 1e6:.0f} MB"
    yield str(row["layers"].get("Reformat", 0))


def page(text: str) -> str:
    """Return the text of the page with the table of today."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
