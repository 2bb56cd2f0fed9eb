"""The kernels of TensorRT for a quantized convolution, by what is behind it: python benchmarks/int8_kernels.py OUT.json

Each network is a convolution, a quantized one, what is behind that, and a third one, which is quantized, too, if not
said otherwise. FP16 and INT8 are allowed, with one profile for batches 1 to 64. OUT.json says for each whether it was
built, in how many seconds, and the engine's layers with the precision and the name of the kernel. Run it on a machine
with a GPU and TensorRT; docs/engines.md has the table.

Touches: the GPU; a temporary folder; writes OUT.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from engines import build
from onnx import numpy_helper

from trtopt.engine.trt import builder as tensorrt
from trtopt.engine.trt import weak
from trtopt.engine.trt.audit import inspect_engine
from trtopt.types import ShapeRange

PIXELS = 40
BEHIND = {
    "nothing": "t = Identity(c)",
    "Relu": "t = Relu(c)",
    "Clip": "t = Clip(c, zero, six)",
    "SiLU": "s = Sigmoid(c) t = Mul(c, s)",
    "per channel": "m = Mul(c, factors) t = Add(m, addends)",
    "scalar": "m = Mul(c, factor) t = Add(m, addend)",
    "HardSwish": "t = HardSwish(c)",
    "HardSigmoid, Mul": "h = HardSigmoid<alpha = 0.16666667>(c) t = Mul(c, h)",
    "Add, Clip, Mul, Div": "a = Add(c, three) b = Clip(a, zero, six) m = Mul(c, b) t = Div(m, six)",
    "LeakyRelu": "t = LeakyRelu(c)",
    "Add": "t = Add(c, r)",
    "average pool": "t = GlobalAveragePool(c)",
}
"""Nodes behind the quantized convolution, from c to t."""
KINDS = {
    "depthwise 48": ("Conv", 48, 3, 48),
    "depthwise 192": ("Conv", 192, 5, 192),
    "dense": ("Conv", 48, 3, 1),
    "4 groups": ("Conv", 48, 3, 4),
    "transposed": ("ConvTranspose", 48, 3, 1),
}
"""Operator, channels, size of the kernel and groups of the quantized convolution."""


def network(kind: str, behind: str, *, quantized: bool = True) -> onnx.ModelProto:
    """Return a network for images of 3 channels; `quantized`: whether the last convolution is."""
    op, channels, size, groups = KINDS[kind]
    random = np.random.default_rng(0)
    pads = [size // 2] * 4
    last = "p = Conv(t, dense)"
    if quantized:
        last = """q_t = QuantizeLinear(t, s_t, z) d_t = DequantizeLinear(q_t, s_t, z)
        w_p = DequantizeLinear<axis = 0>(codes_p, s_w, z_w) p = Conv<kernel_shape = [1, 1]>(d_t, w_p)"""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[n, 3, {PIXELS}, {PIXELS}] x) => (float[n, k, 1, 1] y) {{
        e = Conv<pads = [1, 1, 1, 1]>(x, stem) r = Relu(e)
        q = QuantizeLinear(r, s_t, z) d = DequantizeLinear(q, s_t, z)
        w_c = DequantizeLinear<axis = {int(op == "ConvTranspose")}>(codes_c, s_w, z_w)
        c = {op}<group = {groups}, kernel_shape = [{size}, {size}], pads = {pads}>(d, w_c)
        {BEHIND[behind]}
        {last}
        y = GlobalAveragePool(p) }}"""
    )
    for node in model.graph.node:
        node.name = node.output[0]
    used = {name for node in model.graph.node for name in node.input}
    codes = random.integers(-100, 100, (channels, channels // groups, size, size)).astype(np.int8)
    constants: dict[str, Any] = {
        "stem": random.normal(0, 0.2, (channels, 3, 3, 3)),
        "dense": random.normal(0, 0.1, (channels, channels, 1, 1)),
        "codes_c": codes,
        "codes_p": random.integers(-100, 100, (channels, channels, 1, 1)).astype(np.int8),
        "s_w": np.full(channels, 0.001),
        "z_w": np.zeros(channels, np.int8),
        "s_t": np.array(0.05),
        "z": np.array(0, np.int8),
        "factors": np.full((1, channels, 1, 1), 1.1),
        "addends": np.full((1, channels, 1, 1), 0.1),
    } | {name: np.array(value) for name, value in
         {"factor": 1.1, "addend": 0.1, "zero": 0.0, "three": 3.0, "six": 6.0}.items()}  # fmt: skip
    for name, array in constants.items():
        if name in used:
            kept = array if array.dtype == np.int8 else array.astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(kept, name))
    onnx.checker.check_model(model)
    return model


def cases() -> Iterator[tuple[str, str, bool]]:
    """Yield kind, what is behind, and whether the last convolution is quantized."""
    for behind in BEHIND:
        yield from ((kind, behind, True) for kind in KINDS)
    yield from ((kind, behind, False) for behind in ("nothing", "Relu", "average pool") for kind in KINDS)


def main() -> None:
    """Build each network."""
    out, found = Path(sys.argv[1]), {}
    shape = (3, PIXELS, PIXELS)
    ranges = (ShapeRange(name="x", min=(1, *shape), opt=(32, *shape), max=(64, *shape)),)
    with tempfile.TemporaryDirectory() as folder:
        path, engine = Path(folder) / "model.onnx", Path(folder) / "model.engine"
        for kind, behind, quantized in cases():
            onnx.save(network(kind, behind, quantized=quantized), path)
            start = time.monotonic()
            try:
                build(path, ranges, engine, "-CUDNN", ("INT8", "FP16"))
                layers = inspect_engine(tensorrt.find("tensorrt"), engine.read_bytes()) or []
            except Exception as error:  # noqa: BLE001 - it is the result
                print(error)
                layers = []
            name = f"{kind}, {behind}{'' if quantized else ', then 16 bits'}"
            found[name] = {
                "seconds": round(time.monotonic() - start, 1),
                "layers": [[str(each.get(key)) for key in ("Name", "TacticName")] + [weak.precision_of(each)]
                           for each in layers],
            }  # fmt: skip
            print(name, "built" if layers else "not built", found[name]["seconds"], flush=True)
            out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
