"""`docs/quality.md` from what `quality.py` measured.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]

INTRO = """# INT8 and FP16 on trained networks, side by side

Written by `benchmarks/quality.py`; do not edit. The networks, and samples that none of them was trained on, come from
`benchmarks/zoo.py`; calibration and evaluation samples are disjoint. Every variant is made in its own process from the
same samples, and all are run by the same onnxruntime on the CPU: each 16-bit result rounded, Q/DQ pairs kept as they
are.
trtopt is run with its defaults (the rest of an INT8 network in FP16); onnxruntime and ModelOpt leave the rest in FP32.
onnxruntime is set up as TensorRT wants it: symmetric, per channel, only inputs of Conv, MatMul and Gemm, biases in
floating point, opset 17 at least; its own entropy has 128 bins, and a second row shows it with the 2048 that it offers
no option for.
"""

LEGEND = """Columns: the score on the task; SQNR of the first output against FP32's, in dB, and the mean cosine of each
sample's. *int8 or fp16*: for INT8, how many of the operators that multiply (Conv, ConvTranspose, Gemm, MatMul) read two
dequantized operands; for FP16, how many of the computing nodes compute in it. *TensorRT*: its parser and builder take
it, strongly typed. *calibrate*: seconds from the first sample to the last scale, for trtopt those of its stage of that
name with all that is loaded once, for `auto` with the trial of the four methods on 16 samples, and in FP32's row those
of bare inference over the same samples. *equalize*: seconds of the stage before, in which trtopt tries whether channels
of similar range are better. *total*: all stages. *peak*: of the process that made it, in MB.
"""

QUIET = 0.1
"""Times are compared where no more than this many cores worked on something else while either was measured."""

COLUMNS = (
    "",
    "task",
    "SQNR dB",
    "cosine",
    "int8 or fp16",
    "TensorRT",
    "calibrate s",
    "equalize s",
    "total s",
    "peak MB",
)


def page(models: Mapping[str, Any], titles: Mapping[str, str], default: str) -> str:
    """The whole page: `models` as `ZOO/quality.json` holds them, `titles` of the variants in the order to show.

    `default` is the variant that is trtopt's INT8 as nobody asked for another.
    """
    sections = [INTRO, "## Summary\n", summary(models, titles, default), "## All variants\n", LEGEND]
    sections += [section(name, model, titles) for name, model in models.items()]
    return "\n".join(sections)


def summary(models: Mapping[str, Any], titles: Mapping[str, str], default: str) -> str:
    """trtopt's default beside the better of the peers, one row a model; and FP16."""
    head = (
        "model",
        "task",
        "FP32",
        "INT8: trtopt",
        "best peer",
        "SQNR dB: trtopt",
        "best peer",
        "operators in INT8: trtopt",
        "that peer",
        "calibration / bare inference",
        "slower peer's entropy / trtopt (with equalization)",
        "FP16: trtopt",
        "AutoCast",
        "nodes in FP16",
    )
    body = []
    for name, model in models.items():
        rows: Rows = model["rows"]
        ours, half = rows.get(default, {}), rows.get("trtopt:fp16", {})
        peers = {key: row for key, row in rows.items() if key.startswith(("ort:", "modelopt:int8:")) and "task" in row}
        slowest = max(
            (row for key, row in peers.items() if "ntropy" in key and row.get("calibrate")),
            key=lambda row: float(row["calibrate"]),
            default={},
        )
        body.append(
            (
                name,
                model["metric"],
                number(rows["fp32"].get("task"), 2),
                _bold(ours, peers, "task", 2),
                best(peers, titles, "task", 2),
                _bold(ours, peers, "sqnr", 1),
                best(peers, titles, "sqnr", 1),
                _operators(ours),
                _operators(max(peers.values(), key=lambda row: row["sqnr"], default={})),
                _ratio(ours, rows["fp32"], "samples"),
                _speed(slowest, ours),
                number(half.get("task"), 2),
                number(rows.get("modelopt:fp16", {}).get("task"), 2),
                share(half.get("typed")),
            )
        )
    note = (
        "Bold: at least as good as every variant of onnxruntime and ModelOpt on that measure. Where fewer operators\n"
        "are in INT8, part of a better score is that less was quantized. Calibration against bare inference is at the\n"
        "pace behind the first sample, without what is loaded once and the trial of methods, which the next column\n"
        "has. Times are compared only where both were measured while other work took no more than "
        f"{QUIET} cores of\nthe machine.\n"
    )
    return table(head, body) + "\n" + note


def section(name: str, model: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """One model's table, and how it was measured."""
    rows: Rows = model["rows"]
    calib, evaluated = model["samples"]
    versions = ", ".join(f"{key} {value}" for key, value in model["versions"].items())
    body = [[title, *cells(key, rows[key])] for key, title in titles.items() if key in rows]
    columns = [model["metric"] if column == "task" else column for column in COLUMNS]
    loads = [row["others"] for row in rows.values() if "others" in row]
    load = f" Other work took {min(loads):.1f} to {max(loads):.1f} cores while these rows were made." if loads else ""
    how = f"{model['date']}; {calib} calibration and {evaluated} evaluation samples; {versions}.{load}\n"
    how += f"`{model['command']}`\n"
    return f"### {name}\n\n{table(columns, body)}\n{how}"


def cells(variant: str, row: Mapping[str, Any]) -> list[str]:
    """All but the first cell of a variant's row: numbers, or the reason why there are none."""
    times = [number(row.get("calibrate"), 2), number(row.get("equalize"), 2)]
    times += [number(row.get("total"), 1), number(row.get("peak_mb"), 0)]
    if "error" in row:
        return [f"fails: {_short(row['error'])}", *[""] * 4, *times]
    nodes = _operators(row)
    if variant.endswith(":fp16"):
        nodes = share(row.get("typed"))
    refused = row.get("tensorrt")
    return [
        number(row["task"], 2),
        "" if variant == "fp32" else number(row["sqnr"], 1),
        "" if variant == "fp32" else number(row["cosine"], 5),
        "" if variant == "fp32" else nodes,
        f"no: {_short(refused)}" if refused else "yes",
        *times,
    ]


def best(peers: Rows, titles: Mapping[str, str], measure: str, digits: int) -> str:
    """The best of the peers on one measure, and who that is."""
    if not peers:
        return "none works"
    key = max(peers, key=lambda peer: peers[peer][measure])
    refused = ", which TensorRT refuses" if peers[key].get("tensorrt") else ""
    return f"{number(peers[key][measure], digits)} ({titles[key].partition(' (')[0]}{refused})"


def share(counts: Mapping[str, int] | None) -> str:
    """Nodes in FP16 of all, and in percent."""
    if not counts:
        return ""
    low, total = counts.get("fp16", 0), sum(counts.values())
    return f"{low}/{total} ({100 * low / max(total, 1):.1f} %)"


def number(value: float | None, digits: int) -> str:
    """A rounded number; what was not finite is called so."""
    if value is None:
        return ""
    return "not finite" if value <= -999 else f"{value:.{digits}f}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _bold(ours: Mapping[str, Any], peers: Rows, measure: str, digits: int) -> str:
    if measure not in ours:
        return "fails"
    text = number(ours[measure], digits)
    wins = all(round(ours[measure], digits) >= round(peer[measure], digits) for peer in peers.values())
    return f"**{text}**" if wins else text


def _operators(row: Mapping[str, Any]) -> str:
    return f"{row['quantized']}/{row['quantizable']}" if "quantized" in row else ""


def _ratio(a: Mapping[str, Any], b: Mapping[str, Any], measure: str) -> str:
    if not a.get(measure) or not b.get(measure):
        return ""
    quiet = max(a.get("others", 0.0), b.get("others", 0.0)) <= QUIET
    return f"{a[measure] / b[measure]:.2f}" if quiet else "not quiet"


def _speed(peer: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    both = {**ours, "calibrate": (ours.get("calibrate") or 0.0) + (ours.get("equalize") or 0.0)}
    alone, equalized = _ratio(peer, ours, "calibrate"), _ratio(peer, both, "calibrate")
    return alone if alone == equalized else f"{alone} ({equalized})"


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
