"""The Python functions: every kind of data, examples that run, and names that packages do not hide."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support import DIGITS, EVAL, ROOT

import trtopt
from trtopt import api
from trtopt.api import conversion, measurement, prediction, search
from trtopt.errors import DataError, TrtoptError
from trtopt.types import Report

with np.load(EVAL) as archive:
    IMAGES, LABELS = archive["input"][:40], archive["labels"][:40]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter a folder in which the samples of the checkout are found, as the examples write them."""
    monkeypatch.chdir(tmp_path)
    for name in ("samples", "calibration"):
        (tmp_path / name).symlink_to(ROOT / name)


def drift(data: object, **more: Any) -> Report:
    return trtopt.compare(DIGITS, str(DIGITS), data=data, out="compared", **more)


def of_pairs() -> Iterator[tuple[object, object]]:
    yield from zip(IMAGES, LABELS, strict=True)


@pytest.mark.parametrize(
    ("data", "labelled"),
    [
        (EVAL, True),
        (str(EVAL), True),
        (IMAGES, False),
        ({"input": IMAGES}, False),
        ({"input": IMAGES, "labels": LABELS}, True),
        ([{"input": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)], True),
        (list(IMAGES), False),
        (of_pairs, True),
        (of_pairs(), True),
    ],
    ids=["path", "text", "array", "dict", "dict with labels", "list of dicts", "list", "function", "generator"],
)
def test_data_may_be(data: object, labelled: bool) -> None:
    comparison = drift(data, samples=40).comparison
    assert comparison is not None
    assert (comparison.samples, comparison.labelled) == (40, labelled)


def test_a_dataloader_is_read_in_batches_of_any_size() -> None:
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS.astype(np.int64)))
    for size in (1, 16):
        comparison = drift(torch.utils.data.DataLoader(dataset, batch_size=size)).comparison
        assert comparison is not None
        assert (comparison.samples, comparison.labelled) == (40, True)


def test_the_same_samples_have_the_same_digest_whatever_holds_them() -> None:
    table = trtopt.calibrate(DIGITS, IMAGES, method="minmax", out="a")
    again = trtopt.calibrate(str(DIGITS), iter(IMAGES), method="minmax", out="b")
    assert table == again


def test_convert_takes_a_loader_to_calibrate_and_a_path_to_compare() -> None:
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.from_numpy(IMAGES), batch_size=8)
    report = trtopt.convert(
        DIGITS, precision="int8", calib=loader, data=EVAL, samples=40, backend="onnxruntime", out="run"
    )
    assert report.comparison is not None
    assert report.comparison.samples == 40
    assert report.run_dir == Path("run")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (5, "data: int is not a source of samples"),
        ({"input": IMAGES, "labels": LABELS[:3]}, "different numbers of samples"),
        ([(1, 2, 3)], "a sample has 3 arrays"),
        ([{"other": IMAGES[0]}], "no array for input input"),
        ([], "no samples"),
    ],
)
def test_what_is_no_source_of_samples_is_refused(data: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        drift(data)


def test_a_function_that_fails_is_named() -> None:
    def broken() -> Iterator[object]:
        yield {"input": IMAGES[0]}
        raise ValueError("disk gone")

    with pytest.raises(DataError, match=r"data\[1\]: the function failed: ValueError: disk gone"):
        drift(broken)


def test_what_prevented_an_engine_is_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    report = trtopt.convert(DIGITS, data=IMAGES, out="run")
    assert report.engine is None
    assert report.error is not None
    assert report.error.exit_code == 3


def test_an_error_is_raised_with_its_parts() -> None:
    with pytest.raises(TrtoptError) as raised:
        trtopt.convert("missing.onnx", data=IMAGES)
    assert raised.value.what == "missing.onnx does not exist"


@pytest.mark.parametrize("name", ["bench", "calibrate", "compare", "convert", "export", "inspect", "tune"])
def test_a_function_is_not_hidden_by_the_package_of_its_name(name: str) -> None:
    if name not in ("convert", "inspect", "merge"):
        assert importlib.import_module(f"trtopt.{name}").__path__  # which would become the attribute
    assert getattr(trtopt, name) is getattr(api, name)


def test_importing_the_functions_imports_nothing_heavy() -> None:
    code = "import sys; from trtopt import convert, compare, bench; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_examples_of_the_docstrings_run() -> None:
    results = [doctest.testmod(module) for module in (conversion, measurement, prediction, search)]
    assert [result.failed for result in results] == [0, 0, 0, 0]
    assert sum(result.attempted for result in results) > 10


def test_every_argument_is_a_flag_of_the_command() -> None:
    import inspect

    import typer

    from trtopt.cli.commands import app

    group: Any = typer.main.get_command(app)
    negated = {"compare", "equalization", "bias_correction", "guard", "speed"}
    of_python = {"progress", "baseline", "candidates", "path", "model", "source", "targets"}
    for name in ("convert", "calibrate", "compare", "bench", "export", "inspect", "sensitivity", "tune"):
        flags = {param.name for param in group.commands[name].params}
        for argument in inspect.signature(getattr(api, name)).parameters:
            flag = f"no_{argument}" if argument in negated and argument not in flags else argument
            assert flag in flags | of_python, (name, argument)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda x: x, "model is of type function, and not a path. Write a function that returns the network"),
        (onnx.ModelProto(), "model is of type ModelProto, and not a path. Write it with onnx.save"),
        (5, "model is of type int, and not a path. Pass text"),
    ],
)
def test_a_network_in_memory_is_refused_with_the_way_on(model: object, said: str) -> None:
    with pytest.raises(TrtoptError, match=said):
        trtopt.convert(model)  # type: ignore[arg-type]
