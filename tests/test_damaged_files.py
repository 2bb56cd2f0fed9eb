"""Damaged files of all kinds: one line, exit code 2, no traceback, and nothing left behind that looks complete."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from damaging import damaged, damaged_model, fault, lstm, quantized, transformer
from PIL import Image
from support import CALIB, DIGITS, EVAL, ROOT, Done

Cli = Callable[..., Done]

BUILD = "--backend=onnxruntime"
"""TensorRT's parser is a process of its own to damage; the copies that survive until then are slow to build."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a few samples for each network."""
    folder, rng = tmp_path_factory.mktemp("samples"), np.random.default_rng(1)
    arrays = {
        "digits": {"input": np.load(EVAL)["input"][:4]},
        "transformer": {"ids": rng.integers(0, 50, (4, 8))},
        "lstm": {"x": rng.normal(size=(4, 6, 8)).astype(np.float32)},
        "quantized": {"x": rng.normal(size=(4, 16)).astype(np.float32)},
    }
    for name, array in arrays.items():
        np.savez(folder / f"{name}.npz", **array)
    return {name: folder / f"{name}.npz" for name in arrays}


def handled(cli: Cli, model: Path, data: Path, number: int) -> str:
    """Inspect, convert or compare a damaged model, and return how it was handled badly."""
    run = model.with_suffix("")
    convert = ("convert", model, BUILD, "--data", data, "-o", run, "-p")
    commands: tuple[tuple[object, ...], ...] = (
        ("inspect", model),
        (*convert, "fp16"),
        ("inspect", model, "--tensorrt"),
        (*convert, "int8", "--calib", data),
        ("compare", model, model, "--data", data, "-o", run),
        ("bench", model, "--seconds", "0.01", "--batch", "1", "--device", "cpu", "-o", run),
    )
    command = commands[number % len(commands)]
    why = fault(cli(*command), run if command[0] == "convert" else None)
    shutil.rmtree(run, ignore_errors=True)
    return f"{command[0]} of copy {number}: {why}" if why else ""


def test_damaged_models(cli: Cli, samples: dict[str, Path], tmp_path: Path) -> None:
    random, source = Random(7), DIGITS.read_bytes()
    faults = []
    for number in range(200):
        model = tmp_path / f"{number}.onnx"
        model.write_bytes(damaged_model(source, random))
        faults.append(handled(cli, model, samples["digits"], number))
    assert [why for why in faults if why] == []


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("network", ["digits", "transformer", "lstm", "quantized"])
def test_many_damaged_models(network: str, seed: int, cli: Cli, samples: dict[str, Path], tmp_path: Path) -> None:
    write = {"transformer": transformer, "lstm": lstm, "quantized": quantized}
    source = (write[network](tmp_path / "whole.onnx") if network in write else DIGITS).read_bytes()
    random, faults = Random(seed), []
    for number in range(300):
        model = tmp_path / f"{number}.onnx"
        model.write_bytes(damaged_model(source, random))
        faults.append(handled(cli, model, samples[network], number))
    assert [why for why in faults if why] == []


def write_samples(folder: Path) -> tuple[Path, ...]:
    """Write samples of the digits network in every format, and return the files."""
    pixels = np.load(EVAL)["input"][:4]
    np.savez(folder / "plain.npz", input=pixels)
    np.savez_compressed(folder / "packed.npz", input=pixels)
    np.save(folder / "plain.npy", pixels)
    image = Image.fromarray((pixels[0, 0] * 255).astype(np.uint8))
    for suffix in ("png", "jpg", "bmp", "tif", "webp"):
        (folder / suffix).mkdir()
        image.convert("L" if suffix != "webp" else "RGB").save(folder / suffix / f"image.{suffix}")
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))


def test_damaged_samples(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    random, faults = Random(3), []
    for path in write_samples(tmp_path / "whole"):
        whole, data = path.read_bytes(), path if path.suffix.startswith(".np") else path.parent
        for number in range(12):
            path.write_bytes(damaged(whole, random))
            done = cli("compare", DIGITS, DIGITS, "--data", data, "--recipe", "grayscale", "-o", tmp_path / "run")
            if why := fault(done):
                faults.append(f"{path.name}, copy {number}: {why}")
    assert faults == []


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_damaged_rows(suffix: str, cli: Cli, tmp_path: Path) -> None:
    rows = [{"ids": [1, 2, 3, 4, 5, 6, 7, 8]}] * 4
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    model, whole, random, faults = transformer(tmp_path / "net.onnx"), path.read_bytes(), Random(4), []
    for number in range(40):
        path.write_bytes(damaged(whole, random))
        if why := fault(cli("compare", model, model, "--data", path, "-o", tmp_path / "run")):
            faults.append(f"copy {number}: {why}")
    assert faults == []


def test_damaged_recipes(cli: Cli, tmp_path: Path) -> None:
    whole = (ROOT / "calibration/recipes/imagenet.toml").read_bytes()
    recipe, random, faults = tmp_path / "recipe.toml", Random(5), []
    for number in range(40):
        recipe.write_bytes(damaged(whole, random))
        done = cli("compare", DIGITS, DIGITS, "--data", CALIB, "--recipe", recipe, "-o", tmp_path / "run")
        if why := fault(done):
            faults.append(f"copy {number}: {why}")
    assert faults == []


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, samples: dict[str, Path]) -> Path:
    """Convert the digits network to INT8 once."""
    run = tmp_path_factory.mktemp("whole") / "run"
    arguments = [DIGITS, "-p", "int8", "--calib", samples["digits"], "--allow-inconclusive", "-o", run]
    subprocess.run([sys.executable, "-m", "trtopt", "convert", *map(str, arguments)], check=True, capture_output=True)
    return run


@pytest.mark.parametrize("name", ["calibration.json", "calibration.cache"])
def test_damaged_tables(name: str, cli: Cli, whole_run: Path, tmp_path: Path) -> None:
    whole, random, faults = (whole_run / name).read_bytes(), Random(6), []
    for number in range(20):
        table = tmp_path / name
        table.write_bytes(damaged(whole, random))
        run = tmp_path / str(number)
        done = cli("convert", DIGITS, BUILD, "-p", "int8", "--calib-table", table, "--no-compare", "-o", run)
        if why := fault(done, run):
            faults.append(f"copy {number}: {why}")
    assert faults == []


@pytest.mark.parametrize("name", ["manifest.json", "report.json", "typed.onnx", "observed.npz", "model.engine"])
def test_damaged_run_directories(
    name: str, cli: Cli, whole_run: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    random, faults = Random(8), []
    for number in range(12):
        run = tmp_path / str(number)
        shutil.copytree(whole_run, run)
        if not (run / name).exists():
            pytest.skip(f"there is no {name} without TensorRT")
        (run / name).write_bytes(damaged((run / name).read_bytes(), random))
        commands: tuple[tuple[object, ...], ...] = (
            ("report", run),
            ("compare", "--from", run),
            ("inspect", run),
            ("inspect", run / "model.engine"),
            ("compare", DIGITS, run, "--data", samples["digits"], "-o", tmp_path / "compared"),
            ("bench", run, "--seconds", "0.01", "--batch", "1", "--device", "cpu", "-o", tmp_path / "timed"),
            ("convert", DIGITS, BUILD, "-p", "int8", "--calib", samples["digits"], "-o", run),
        )
        command = commands[number % len(commands)]
        if why := fault(cli(*command)):
            faults.append(f"{command[0]}, copy {number}: {why}")
    assert faults == []
