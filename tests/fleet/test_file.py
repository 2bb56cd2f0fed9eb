"""The file of a fleet, and `--gpu`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import Done

from trtopt.bench import nvml
from trtopt.errors import EnvironmentUnableError, UsageError
from trtopt.fleet import file, gpus
from trtopt.fleet.demand import MB, constant

MODEL = '[[model]]\nname = "a"\nrate = 5\nweights = "1MB"\ncontext = "1MB"\nactivations = "1MB"\ntimes = {1 = "2ms"}\n'


def test_what_is_stated_is_read(stated: Path) -> None:
    (first, second), process = file.read(stated)
    assert process == 600 * MB
    made = file.demand(first, first.name, file.Known())
    assert (made.name, made.rate, made.limit, made.priority, made.largest) == ("detector", 200, 50, 1, 32)
    assert made.memory.needed(8, 2) == (120 + 2 * (80 + 8 * 20)) * MB
    assert [made.time(batch) for batch in (1, 8, 20, 32)] == [4, 12, 26, 40]
    assert math.isinf(second.limit)


def test_what_is_measured_of_a_run_is_taken_unless_stated(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[[model]]\nrun = "runs/a"\nrate = 5\nweights = "7MB"\n')
    (stated,), _ = file.read(path)
    assert stated.run == tmp_path / "runs/a"
    known = file.Known(
        weights=1e6, context=2e6, per_sample=3e6, times=(constant(1, 2.0), constant(8, 4.0)), largest=4, measure="bench"
    )
    made = file.demand(stated, "a", known)
    assert (made.memory.weights, made.memory.context, made.memory.per_sample) == (7e6, 2e6, 3e6)
    assert made.batches() == (1, 2, 4)


def test_a_run_that_was_not_measured_is_named_with_the_command(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[[model]]\nrun = "a"\nrate = 5\n')
    (stated,), _ = file.read(path)
    with pytest.raises(UsageError, match=r"context and activations and times not known. Measure it: trtopt bench a"):
        file.demand(stated, "a", file.Known(weights=1.0, measure="trtopt bench a"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "names no models"),
        ("model = 3", "names no models"),
        ("[[model]\n", "is not TOML"),
        ('[[model]]\nrate = 5\nrun = "a"\nrates = 3', "unknown key 'rates'. Did you mean rate?"),
        ("[[model]]\nrate = 5", "model 1 has no run"),
        ('[[model]]\nrun = "a"', "rate must be a number above 0 and at most 1e+07: it is missing"),
        ('[[model]]\nrun = "a"\nrate = "5"', "it is '5'"),
        ('[[model]]\nrun = "a"\nrate = true', "it is True"),
        ('[[model]]\nrun = "a"\nrate = nan', "it is nan"),
        ('[[model]]\nrun = "a"\nrate = 0', "it is 0"),
        ('[[model]]\nrun = "a"\nrate = 1\npriority = 1.5', "priority must be an integer"),
        ('[[model]]\nrun = "a"\nrate = 1\nshare = 1.5', "share must be a number above 0 and at most 1"),
        ("[[model]]\nrun = 3\nrate = 1", "run must be a text"),
        ('[[model]]\nname = "a b"\nrate = 1', "cannot be a name"),
        ('[[model]]\nrun = "a"\nrate = 1\nlatency-limit = 5', "latency-limit must be a text"),
        ('[[model]]\nrun = "a"\nrate = 1\nlatency-limit = "5"', "missing unit"),
        ('[[model]]\nrun = "a"\nrate = 1\nweights = 5', "missing unit"),
        ('[[model]]\nrun = "a"\nrate = 1\ntimes = 5', "times must be a table"),
        ('[[model]]\nrun = "a"\nrate = 1\ntimes = {x = "1ms"}', "'x' in times is not a batch size"),
        ('[[model]]\nrun = "a"\nrate = 1\ntimes = {1 = "1"}', "missing unit"),
        ('process = "1"\n' + MODEL, "missing unit"),
        (MODEL + MODEL, "two models are named a"),
    ],
)
def test_a_wrong_file_gets_one_line(cli: Callable[..., Done], tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    done = cli("fleet", path, "--gpu", "T4", "--dry-run")
    assert done.code == 2
    (error,) = (each for each in done.err.splitlines() if each.startswith("error:"))
    assert line in error


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["L4"], [("0", 23034 * 2**20, 1)]),
        (["L4:2", "mine=8GiB"], [("0", 23034 * 2**20, 1), ("1", 23034 * 2**20, 1), ("2", 8 * 2**30, 1)]),
        (["T4,H100-80GB/3g.40gb:2"], [("0", 15360 * 2**20, 1), ("1:0", 36.8e9, 3 / 7), ("1:1", 36.8e9, 3 / 7)]),
        (["box/1g.10gb=9GB:1"], [("0:0", 9e9, 1 / 7)]),
    ],
)
def test_gpus_are_parsed(texts: list[str], expected: list[tuple[str, float, float]]) -> None:
    assert [(gpu.device, gpu.memory, gpu.speed) for gpu in gpus.parse(texts)] == expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "does not parse"),
        ("L4:0", "does not parse"),
        ("L4:99", "does not parse"),
        ("L4/9g.10gb", "does not parse"),
        ("l4", "Did you mean L4?"),
        ("Quadro", "State its memory: --gpu Quadro=24GiB"),
        ("mine=8", "missing unit"),
        ("H100-80GB/3g.40gb:3", "a GPU has no more than 7"),
        ("T4/3g.40gb", "the slices have more memory than the GPU"),
    ],
)
def test_a_wrong_gpu_gets_one_line(cli: Callable[..., Done], stated: Path, text: str, line: str) -> None:
    done = cli("fleet", stated, "--gpu", text, "--dry-run")
    assert done.code == 2
    assert line in done.err


class Nvml(SimpleNamespace):
    """NVML of a machine with a whole GPU, and one that is divided."""

    NVMLError = RuntimeError

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"gpu{index}"

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return "NVIDIA H100 80GB"

    def nvmlDeviceGetMigMode(self, handle: str) -> tuple[int, int]:  # noqa: N802
        return (int(handle == "gpu1"),) * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:  # noqa: N802
        if index > 1:
            raise self.NVMLError
        return f"{handle}/{index}"

    def nvmlDeviceGetAttributes(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpuInstanceSliceCount=3)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=40 * 2**30 if "/" in handle else 80 * 2**30)


def test_auto_finds_whole_gpus_and_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    # NVML and a divided GPU cannot exist here.
    monkeypatch.setattr(nvml, "start", lambda what: Nvml())
    monkeypatch.setattr(nvml, "stop", lambda module: None)
    found = gpus.parse(["auto"])
    assert [(gpu.device, gpu.name, gpu.profile) for gpu in found] == [
        ("0", "H100-80GB", ""),
        ("1:0", "H100-80GB/3g.40gb", "3g.40gb"),
        ("1:1", "H100-80GB/3g.40gb", "3g.40gb"),
    ]


def test_auto_without_a_gpu_says_so() -> None:
    if sys.modules.get("pynvml") is None:
        pytest.importorskip("pynvml")
    with pytest.raises(EnvironmentUnableError, match="--gpu auto finds no GPU"):
        gpus.parse(["auto"])
