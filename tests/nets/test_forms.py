"""Networks of thirteen families, exported in several forms, converted, and judged on the typed graph.

Every network in one form and some in two take a minute; all forms are for the night.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from forms import Form as Given
from forms import Measured, measure
from nets.catalog import HIGH, LOW, NETWORKS, OPSETS, Arrays, Form, export, module, outputs, tensors
from networks.small import Cli

# torch's warnings while it exports are for its own developers.
pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLES = 16
POOLS = {"ReduceMean", "GlobalAveragePool", "AveragePool"}
NO_GAIN = ("a matrix-vector product", "channel", "outer dimension", "its left operand is constant",
           "an attention product under a mask computed at run time",
           "a depthwise convolution that is followed by")  # fmt: skip
"""Parts of the reasons for which weighted operators of these networks are not quantized."""


@pytest.fixture(scope="module", autouse=True)
def _cleared():
    yield
    folder.cache_clear()


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="trtopt-nets-")


def text(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def shapes(name: str, model: Path, batch: int | None) -> tuple[str, ...]:
    """Return the `--shape` flags of the inputs that have dynamic axes."""
    random = np.random.default_rng(0)
    low, opt, high = (
        NETWORKS[name].draw(batch or b, length, random) for b, length in ((1, LOW), (8, HIGH), (32, HIGH))
    )
    inputs = {value.name: value.type.tensor_type.shape.dim for value in onnx.load(model).graph.input}
    return tuple(
        f"{key}={text(low[key].shape)}:{text(opt[key].shape)}:{text(high[key].shape)}"
        for key in low if key in inputs and not all(dim.dim_value for dim in inputs[key])
    )  # fmt: skip


def evaluated(name: str, batch: int | None) -> list[Arrays]:
    """Return feeds of the fixed batch, or of several batches, and of several lengths."""
    random = np.random.default_rng(3)
    sizes = [(batch or 1, HIGH)] * (32 // (batch or 1)) + [(batch or 4, LOW)] + [(batch or 7, HIGH // 2)]
    return [NETWORKS[name].draw(size, length, random) for size, length in sizes]


@functools.cache
def exported(name: str, form: Form) -> Path:
    """Return the exported network, whose outputs are those of PyTorch."""
    path = export(name, form, Path(folder().name) / f"{name}-{form}.onnx")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for feed in evaluated(name, form.batch)[-2:]:
        for found, wanted in zip(session.run(None, feed), outputs(name, feed), strict=True):
            assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    return path


@functools.cache
def converted(name: str, form: Form, precision: str, *, plain: bool = False) -> Measured:
    model, root = exported(name, form), Path(folder().name)
    files = {}
    for part, seed in (("calib", 11), ("data", 12)):
        files[part] = root / f"{name}-{part}.npz"
        np.savez(files[part], **NETWORKS[name].draw(SAMPLES, HIGH, np.random.default_rng(seed)))
    given = Given(model=model, shapes=shapes(name, model, form.batch), **files)
    run = root / f"{name}-{form}-{precision}{'-plain' * plain}"
    return measure(given, precision, run, evaluated(name, form.batch), plain=plain)


def placed(measured: Measured) -> Counter[str]:
    """Return the number of quantized operators by kind; a pool has several names."""
    counts = Counter[str]()
    for kind, count in measured.quantized.items():
        counts["pool" if kind in POOLS else kind] += count
    return counts


def check(name: str, form: Form) -> None:
    assert converted(name, form, "fp16").sqnr >= 45
    int8 = converted(name, form, "int8")
    assert int8.sqnr >= 20
    left = {reason: count for reason, count in int8.reasons.items() if not any(part in reason for part in NO_GAIN)}
    assert not left


def check_alike(name: str, forms: list[Form]) -> None:
    """Check that forms of one batch have the same operators quantized, and about the same SQNR.

    Nothing is chosen by trials on the 16 samples: between equals, rounding would decide.
    """
    first, *others = (converted(name, form, "int8", plain=True) for form in forms)
    for form, other in zip(forms[1:], others, strict=True):
        assert placed(other) == placed(first), form
        assert min(first.sqnr, other.sqnr) > 40 or abs(other.sqnr - first.sqnr) < 0.5, form


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_keeps_its_results_in_fp16_and_int8(name: str) -> None:
    check(name, Form("script", 17))


@pytest.mark.parametrize("name", ["mobilenet", "whisper", "bert"])
def test_both_exporters_are_quantized_alike(name: str) -> None:
    check_alike(name, [Form("script", 17), Form("dynamo", 20)])


def test_packed_sequences_are_exported_from_torchscript(tmp_path: Path, cli: Cli) -> None:
    feed = NETWORKS["tagger"].draw(3, HIGH, np.random.default_rng(1))
    torch.jit.trace(module("tagger"), tensors(feed)).save(tmp_path / "tagger.pt")
    flags = ["--shape", f"ids=1x{LOW}:3x{HIGH}:8x{HIGH}", "--shape", "lengths=1:3:8"]
    flags += ["--dtype", "ids=int64", "--dtype", "lengths=int64"]
    np.savez(tmp_path / "data.npz", **NETWORKS["tagger"].draw(8, HIGH, np.random.default_rng(2)))
    done = cli("export", tmp_path / "tagger.pt", "-o", tmp_path / "t.onnx", "--data", tmp_path / "data.npz", *flags)
    assert done.code == 0, done.err


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if "dynamo" in network.exporters])
def test_trtopts_own_export_has_the_results_of_pytorch(
    name: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    network, random = NETWORKS[name], np.random.default_rng(0)
    low, opt, high = (network.draw(batch, length, random) for batch, length in ((1, LOW), (3, HIGH // 2), (8, HIGH)))
    flags: list[str] = []
    for key, array in opt.items():
        flags += ["--shape", f"{key}={text(low[key].shape)}:{text(array.shape)}:{text(high[key].shape)}"]
        flags += ["--dtype", f"{key}={array.dtype}"]
    np.savez(tmp_path / "data.npz", **network.draw(8, HIGH, random))
    files = ["-o", tmp_path / "model.onnx", "--data", tmp_path / "data.npz"]
    done = cli("export", f"nets.factories:{name}", *files, *flags)
    assert done.code == 0, done.err


@pytest.mark.nightly
@pytest.mark.parametrize("batch", [None, 1, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_is_quantized_alike(name: str, batch: int | None) -> None:
    forms = [Form(exporter, opset, batch) for exporter in NETWORKS[name].exporters for opset in OPSETS[exporter]]
    for form in forms:
        check(name, form)
    check_alike(name, forms)
