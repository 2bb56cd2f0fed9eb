"""`trtopt doctor`: detection of drivers, GPUs and packages, and its output."""

import json
import subprocess
import sys
import types
from importlib.metadata import version

import pytest
from typer import Typer
from typer.testing import CliRunner

from trtopt.cli.doctor import doctor
from trtopt.commands.doctor import probe, versions
from trtopt.engine.cuda import driver as probing
from trtopt.engine.cuda.driver import Gpu, read_driver

app = Typer()
app.command()(doctor)


class NvmlError(Exception):
    pass


def nvml(*gpus, broken=False):
    """Return a fake pynvml with the given GPUs: the machines of these tests have none."""

    def start():
        if broken:
            raise NvmlError("Driver Not Loaded")

    return types.SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=start,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"580.95.05",
        nvmlSystemGetCudaDriverVersion=lambda: 13020,
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetName=lambda gpu: gpu[0],
        nvmlDeviceGetCudaComputeCapability=lambda gpu: gpu[1],
        nvmlDeviceGetMemoryInfo=lambda gpu: types.SimpleNamespace(total=24 << 30),
    )


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml(broken=True))


@pytest.fixture
def gpu(monkeypatch):
    def plug(name, capability):
        monkeypatch.setitem(sys.modules, "pynvml", nvml((name, capability)))

    return plug


@pytest.fixture
def hidden(monkeypatch):
    """Make packages impossible to import."""

    def hide(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


def test_versions_are_those_of_the_installed_packages_and_of_python():
    installed = versions()
    assert installed["onnx"] == version("onnx")
    assert installed["tensorrt-rtx-cu13"] == version("tensorrt-rtx-cu13")
    assert installed["python"] == ".".join(map(str, sys.version_info[:3]))


def test_rtx_builds_without_a_driver_and_nothing_runs(no_driver):
    environment = probe()
    assert environment.can_build
    assert "12.0" in environment.build
    assert not environment.can_run
    assert "Driver Not Loaded" in environment.run
    assert {candidate.name for candidate in environment.tensorrt} == {"tensorrt", "tensorrt_rtx"}


def test_a_gpu_has_the_properties_that_the_driver_reports(gpu):
    gpu("NVIDIA GeForce RTX 4090", (8, 9))
    driver = read_driver()
    assert (driver.version, driver.cuda, driver.absent) == ("580.95.05", "13.2", "")
    assert driver.gpus == (Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9", memory_bytes=24 << 30),)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 5), False),
        ((8, 0), True),
        ((8, 6), True),
        ((8, 9), True),
        ((9, 0), False),
        ((10, 0), False),
        ((12, 0), True),
    ],
)
def test_rtx_supports_gpus_by_compute_capability(gpu, hidden, capability, runs):
    hidden("tensorrt")
    gpu("some GPU", capability)
    environment = probe()
    assert environment.can_run is runs
    assert ("is not supported by tensorrt_rtx" in environment.run) is not runs


def test_a_gpu_that_shares_the_hosts_memory_is_listed(monkeypatch):
    fake = nvml(("NVIDIA GB10", (12, 1)))

    def refuse(gpu):
        raise NvmlError("Not Supported")

    fake.nvmlDeviceGetMemoryInfo = refuse
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert read_driver().gpus == (Gpu(name="NVIDIA GB10", compute_capability="12.1", memory_bytes=0),)
    assert probe().can_run
    assert "shared with the CPU" in CliRunner().invoke(app, []).stdout


def test_a_driver_that_stops_answering_is_reported_without_an_error(monkeypatch):
    def fail(*_):
        raise NvmlError("GPU is lost")

    fake = nvml(("some GPU", (8, 9)))
    fake.nvmlDeviceGetName = fake.nvmlShutdown = fail
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert "GPU is lost" in read_driver().absent


def test_an_nvml_that_cannot_be_imported_is_reported_without_an_error(monkeypatch, tmp_path):
    (tmp_path / "pynvml.py").write_text("raise OSError('libnvidia-ml.so.1 is damaged')\n")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert "libnvidia-ml.so.1" in read_driver().absent


def test_the_remains_of_an_interrupted_uninstallation_are_not_listed(monkeypatch, tmp_path):
    (tmp_path / "tensorflow-2.19.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "tensorflow" not in versions()


def test_without_nvml_the_driver_is_detected_on_disk(hidden, monkeypatch, tmp_path):
    hidden("pynvml")
    monkeypatch.setattr(probing, "_KERNEL_DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_driver().absent == "no NVIDIA driver"
    monkeypatch.setattr(probing, "_KERNEL_DRIVER", tmp_path)
    assert "nvidia-ml-py" in read_driver().absent


def test_without_any_tensorrt_an_extra_is_recommended(no_driver, hidden):
    hidden("tensorrt", "tensorrt_rtx")
    environment = probe()
    assert not environment.can_build
    assert all(candidate.reason for candidate in environment.tensorrt)
    assert "pip install tensorrt-rtx-cu13" in {advice.command for advice in environment.advice}


def test_both_packages_of_onnxruntime_at_once_are_a_warning(no_driver, monkeypatch, tmp_path):
    assert not probe().warnings
    folder = tmp_path / "onnxruntime_gpu-1.27.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.27.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    (warning,) = probe().warnings
    assert "onnxruntime and onnxruntime-gpu" in warning


def test_an_onnxruntime_that_cannot_be_imported_is_reported_without_an_error(no_driver, monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise OSError('libcudart.so.12 is missing')\n")
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    environment = probe()
    assert environment.providers == ()
    assert "libcudart.so.12" in environment.warnings[0]


def test_a_probe_imports_no_training_framework():
    code = (
        "import sys; from trtopt.commands.doctor import probe; probe();"
        "print({'torch', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_doctor_prints_a_table_and_exits_with_0_if_an_engine_can_be_built(no_driver):
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    for word in ("builds", "tensorrt_rtx", "onnxruntime", "portability"):
        assert word in result.stdout


def test_doctor_prints_json_with_a_schema_version(gpu):
    gpu("NVIDIA H200", (9, 0))
    result = CliRunner().invoke(app, ["--format", "json"])
    data = json.loads(result.stdout)
    assert data["schema_version"] == 1
    assert data["driver"]["gpus"][0]["compute_capability"] == "9.0"
    assert data["can_build"] is True


def test_doctor_exits_with_3_if_no_engine_can_be_built(no_driver, hidden):
    hidden("tensorrt", "tensorrt_rtx")
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 3
    assert "tensorrt-rtx-cu13" in result.stdout
