"""The CUDA interface without a GPU: error messages, and the life of resources on a fake backend."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np
import pytest
from engine.cuda_on_host import HostBackend, at, has_driver

from trtopt.engine.cuda.device import PACKAGES, CudaError, Device, open_device
from trtopt.errors import EXIT_UNABLE, EnvironmentUnableError, MissingDependencyError, OutOfMemoryError, UsageError


def has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


without_driver = pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
with_cuda_python = pytest.mark.skipif(not has("cuda.bindings"), reason="cuda-python is not installed")


@without_driver
def test_a_missing_gpu_is_an_error_of_one_line() -> None:
    with pytest.raises((EnvironmentUnableError, MissingDependencyError)) as error:
        open_device()
    assert error.value.exit_code == EXIT_UNABLE
    assert "\n" not in str(error.value)


@without_driver
@with_cuda_python
def test_the_error_without_a_driver_names_libcuda() -> None:
    with pytest.raises(EnvironmentUnableError, match="no NVIDIA driver found: libcuda cannot be loaded"):
        open_device(package="cuda-python")


@with_cuda_python
def test_the_error_about_an_old_driver_names_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("trtopt.engine.cuda.python")
    bindings = importlib.import_module("cuda.bindings").__version__
    monkeypatch.setattr(module, "driver", lambda: 11040)
    with pytest.raises(EnvironmentUnableError) as error:
        open_device(package="cuda-python")
    needed = bindings.split(".")[0]
    assert f"it supports CUDA 11.4, and cuda-python {bindings} needs CUDA {needed}" in str(error.value)
    assert f"'cuda-python<{needed}'" in error.value.fix


@with_cuda_python
def test_the_error_without_nvrtc_names_its_package() -> None:
    module = importlib.import_module("trtopt.engine.cuda.python")
    try:
        importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except RuntimeError:
        with pytest.raises(MissingDependencyError, match=r"NVRTC cannot be loaded.*cuda-python\[all\]"):
            module.compile("", (9, 0), ())
    else:
        pytest.skip("NVRTC is installed")


@with_cuda_python
def test_a_gpu_too_old_for_nvrtc_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("trtopt.engine.cuda.python")
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    monkeypatch.setattr(nvrtc, "nvrtcGetSupportedArchs", lambda: (0, [75, 80, 90]))
    with pytest.raises(EnvironmentUnableError, match=r"is 7\.0, and NVRTC supports 7\.5 and later\. Install"):
        module.compile("", (7, 0), ())


@pytest.mark.parametrize("package", [name for name in PACKAGES if not has(name.replace("-python", ".bindings"))])
def test_the_error_about_a_missing_package_contains_the_command_that_installs_it(package: str) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install (cuda-python|pycuda)"):
        open_device(package=package)


def test_an_unknown_package_is_rejected() -> None:
    with pytest.raises(UsageError, match="cuda-python or pycuda"):
        open_device(package="cupy")


def test_closing_a_device_releases_its_resources_newest_first() -> None:
    backend = HostBackend()
    with Device(backend, 0) as device:
        device.stream()
        device.allocate(8)
        device.event()
    assert backend.released == ["event", "memory", "stream", "context"]
    assert not backend.alive


def test_closing_twice_is_harmless() -> None:
    backend = HostBackend()
    device = Device(backend, 0)
    with device.allocate(8) as buffer:
        buffer.close()
    device.close()
    device.close()
    assert backend.released == ["memory", "context"]


def test_a_resource_closed_early_is_not_released_twice() -> None:
    backend = HostBackend()
    with Device(backend, 0) as device:
        device.allocate(8).close()
        assert backend.memory()[0] == backend.room
    assert backend.released == ["memory", "context"]


def test_the_error_about_exhausted_memory_names_the_requested_and_the_free_size() -> None:
    with Device(HostBackend(room=4 << 20), 0) as device:
        kept = device.allocate(1 << 20)
        with pytest.raises(OutOfMemoryError, match=r"cannot allocate 8 MiB: 3 MiB of 4 MiB are free\. Use a smaller"):
            device.allocate(8 << 20)
        assert not kept.closed


def test_copies_go_both_ways_and_device_to_device() -> None:
    with Device(HostBackend(), 0) as device:
        stream, first, second = device.stream(), device.allocate(12), device.allocate(12)
        sent, received = np.arange(3, dtype=np.float32), np.zeros(3, np.float32)
        stream.to_device(first, sent)
        stream.on_device(second, first, 12)
        stream.to_host(received, second)
        np.testing.assert_array_equal(received, sent)
        stream.fill(second, 4, 255)
        assert at(second.pointer, 12, np.uint8)[:6].tolist() == [255] * 4 + [sent.view(np.uint8)[4], 0]


def test_a_copy_beyond_a_buffer_or_of_a_strided_array_is_rejected() -> None:
    backend = HostBackend()
    with Device(backend, 0) as device:
        stream, buffer = device.stream(), device.allocate(8)
        with pytest.raises(ValueError, match="12 bytes do not fit into a buffer of 8 bytes"):
            stream.to_device(buffer, np.zeros(3, np.float32))
        with pytest.raises(ValueError, match="not contiguous"):
            stream.to_device(buffer, np.zeros(4, np.float32)[::2])
        buffer.close()
        with pytest.raises(ValueError, match="the buffer is closed"):
            stream.fill(buffer, 1)
    assert backend.launched == []


def test_pinned_memory_is_an_array_of_any_shape_that_fits() -> None:
    with Device(HostBackend(), 0) as device:
        pinned = device.pinned(24)
        pinned.array((2, 3), np.float32)[:] = 7
        assert pinned.array((6,), np.float32).tolist() == [7] * 6
        assert pinned.array((), np.float32).item() == 7
        with pytest.raises(ValueError, match="28 bytes do not fit into a buffer of 24 bytes"):
            pinned.array((7,), np.float32)


def test_captured_work_runs_when_it_is_replayed() -> None:
    with Device(HostBackend(), 0) as device:
        stream, buffer = device.stream(), device.allocate(4)
        graph = stream.capture(lambda: stream.fill(buffer, 4, 9))
        assert at(buffer.pointer, 4, np.uint8).tolist() == [0] * 4
        stream.replay(graph)
        assert at(buffer.pointer, 4, np.uint8).tolist() == [9] * 4


def test_a_capture_that_fails_leaves_the_stream_usable() -> None:
    backend = HostBackend()
    with Device(backend, 0) as device:
        stream, buffer = device.stream(), device.allocate(4)

        def fails() -> None:
            stream.fill(buffer, 4, 1)
            raise CudaError("no")

        with pytest.raises(CudaError):
            stream.capture(fails)
        with pytest.raises(CudaError, match="enqueued nothing"):
            stream.capture(lambda: None)
        stream.fill(buffer, 4, 2)
        assert at(buffer.pointer, 4, np.uint8).tolist() == [2] * 4
        assert [kind for kind, _ in backend.alive.values()] == ["context", "stream", "memory"]
