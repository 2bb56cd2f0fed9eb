"""The CUDA interface on a real GPU, with each installed package: cuda-python, pycuda."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from engine.kernels import ONE_THREAD, kernel, resident, spin_for
from support import ROOT

from trtopt.engine.cuda.device import CudaError, Device, Launch, open_device
from trtopt.errors import EXIT_UNABLE, EnvironmentUnableError, OutOfMemoryError

pytestmark = pytest.mark.gpu
MILLION = 1_000_000


def test_the_gpu_is_named_with_its_memory_and_its_driver(device: Device, package: str) -> None:
    info = device.info
    print(info, f"{device.free_bytes() / 2**30:.1f} GiB free")
    assert info.package.startswith(package)
    assert info.compute_capability >= (7, 0)
    assert 0 < device.free_bytes() < info.total_bytes
    assert int(info.driver.split(".")[0]) >= 12


def test_a_gpu_that_does_not_exist_is_an_error(package: str) -> None:
    with pytest.raises(EnvironmentUnableError, match="there is no GPU 99: the NVIDIA driver lists") as error:
        open_device(99, package)
    assert error.value.exit_code == EXIT_UNABLE


def test_copies_to_the_device_and_back_preserve_data(device: Device) -> None:
    stream, sent = device.stream(), np.random.default_rng(0).normal(size=MILLION).astype(np.float32)
    pinned, there, copy = device.pinned(sent.nbytes), device.allocate(sent.nbytes), device.allocate(sent.nbytes)
    array = pinned.array(sent.shape, sent.dtype)
    array[:] = sent
    stream.to_device(there, array)
    stream.on_device(copy, there, sent.nbytes)
    back = np.empty_like(sent)
    stream.to_host(back, copy)
    stream.synchronize()
    assert np.array_equal(back, sent)


def test_memory_is_filled_from_an_address(device: Device) -> None:
    stream, there, back = device.stream(), device.allocate(8), np.empty(8, np.uint8)
    stream.fill(there, 8, 1)
    stream.fill(there.pointer + 4, 4, 7)
    stream.to_host(back, there)
    stream.synchronize()
    assert back.tolist() == [1, 1, 1, 1, 7, 7, 7, 7]


def test_a_kernel_receives_arguments_of_each_type(device: Device) -> None:
    stream, x = device.stream(), np.arange(MILLION, dtype=np.float32)
    source, target, back = device.allocate(x.nbytes), device.allocate(x.nbytes), np.empty_like(x)
    stream.to_device(source, x)
    arguments = (target, np.uint64(source.pointer), np.float32(0.5), np.int32(x.size))
    stream.launch(kernel(device, "scaled"), Launch(grid=(256,), block=(256,)), *arguments)
    stream.to_host(back, target)
    stream.synchronize()
    assert np.array_equal(back, x * np.float32(0.5))


def test_a_kernel_can_use_more_than_48_kib_of_shared_memory(device: Device) -> None:
    stream, data = device.stream(), np.arange(16_000, dtype=np.int32)
    there, back = device.allocate(data.nbytes), np.empty_like(data)
    stream.to_device(there, data)
    shape = Launch(grid=(1,), block=(256,), shared_bytes=data.nbytes)
    stream.launch(kernel(device, "reversed"), shape, there, np.int32(data.size))
    stream.to_host(back, there)
    stream.synchronize()
    assert data.nbytes > 48 * 1024
    assert np.array_equal(back, data[::-1])


def test_a_kernel_is_compiled_with_options(device: Device) -> None:
    stream, there, back = device.stream(), device.allocate(4), np.zeros(1, np.int32)
    source = 'extern "C" __global__ void put(int *to) { *to = VALUE; }'
    stream.launch(device.compile(source, "put", ("-DVALUE=41",)), ONE_THREAD, there)
    stream.to_host(back, there)
    stream.synchronize()
    assert back.item() == 41


def test_the_error_about_a_kernel_contains_the_compilers_first_error(device: Device) -> None:
    with pytest.raises(CudaError, match=r'does not compile.*"missing" is undefined'):
        device.compile('extern "C" __global__ void bad() { missing(); }', "bad")


def test_a_kernel_of_another_name_is_not_found(device: Device) -> None:
    with pytest.raises(CudaError, match="not found"):
        kernel(device, "nobody")


def test_streams_run_concurrently(device: Device) -> None:
    cycles, spin, done = spin_for(device, 20), kernel(device, "spin"), device.allocate(4)
    streams = [device.stream() for _ in range(4)]
    start = streams[0].record(device.event())
    for stream in streams[1:]:
        stream.wait(start)
    for stream in streams:
        stream.launch(spin, ONE_THREAD, cycles, done)
    ends = [stream.record(device.event()) for stream in streams]
    for end in ends:
        end.synchronize()
    took = max(end.since(start) for end in ends)
    print(f"4 kernels of 20 ms on 4 streams: {took:.1f} ms")
    assert took < 2 * 20


def test_a_copy_and_a_kernel_overlap(device: Device) -> None:
    size = 512 << 20
    copying, computing = device.stream(), device.stream()
    pinned, there = device.pinned(size), device.allocate(size)
    data = pinned.array((size,), np.uint8)
    spin, done = kernel(device, "spin"), device.allocate(4)

    def copy_alone() -> float:
        start = copying.record(device.event())
        copying.to_device(there, data)
        end = copying.record(device.event())
        end.synchronize()
        return end.since(start)

    copy_alone()
    alone = copy_alone()
    cycles = spin_for(device, alone)
    start = copying.record(device.event())
    computing.wait(start)
    computing.launch(spin, ONE_THREAD, cycles, done)
    copying.to_device(there, data)
    copied, computed = copying.record(device.event()), computing.record(device.event())
    copied.synchronize()
    computed.synchronize()
    both = max(copied.since(start), computed.since(start))
    print(f"copy {alone:.1f} ms ({size / alone / 1e6:.1f} GB/s), kernel the same, both at once {both:.1f} ms")
    assert both < 1.5 * alone


def test_a_stream_waits_for_an_event_of_another(device: Device) -> None:
    cycles, spin, done = spin_for(device, 20), kernel(device, "spin"), device.allocate(4)
    first, second, back = device.stream(), device.stream(), np.empty(1, np.int32)
    first.fill(done, 4)
    first.launch(spin, ONE_THREAD, cycles, done)
    second.wait(first.record(device.event()))
    second.to_host(back, done)
    second.synchronize()
    assert back.item() == 1


def test_captured_work_runs_only_when_the_graph_is_replayed(device: Device) -> None:
    if not device.backend.GRAPHS:
        with pytest.raises(CudaError, match=r"pycuda .* does not support them"):
            device.stream().capture(lambda: None)
        return
    stream, done, back, spin = device.stream(), device.allocate(4), np.zeros(1, np.int32), kernel(device, "spin")
    stream.fill(done, 4)

    def work() -> None:
        for _ in range(10):
            stream.launch(spin, ONE_THREAD, np.int64(0), done)

    def count() -> int:
        stream.to_host(back, done)
        stream.synchronize()
        return int(back.item())

    work()
    assert count() == 10
    graph = stream.capture(work)
    assert count() == 10
    for _ in range(50):
        stream.replay(graph)
    assert count() == 510
    launched, replayed = [], []
    for _ in range(20):
        for times, act in ((launched, work), (replayed, lambda: stream.replay(graph))):
            began = time.perf_counter()
            act()
            times.append(time.perf_counter() - began)
            stream.synchronize()
    print(f"10 launches {min(launched) * 1e6:.0f} us on the host, the graph of them {min(replayed) * 1e6:.0f} us")


def test_work_that_waits_for_the_gpu_cannot_be_captured_and_the_stream_stays_usable(device: Device) -> None:
    if not device.backend.GRAPHS:
        pytest.skip("pycuda has no graphs")
    stream, there, back = device.stream(), device.allocate(4), np.zeros(1, np.int32)
    with pytest.raises(CudaError):
        stream.capture(stream.synchronize)
    stream.fill(there, 4, 1)
    stream.to_host(back, there)
    stream.synchronize()
    assert back.item() == 0x01010101


def test_exhausted_memory_is_its_own_error_and_the_device_stays_usable(device: Device) -> None:
    with pytest.raises(OutOfMemoryError, match="GPU 0 cannot allocate") as error:
        device.allocate(2 * device.info.total_bytes)
    print(error.value)
    device.allocate(device.free_bytes() - (1 << 30))
    with pytest.raises(OutOfMemoryError):
        device.allocate(2 << 30)
    device.close()
    with open_device(package=device.info.package.split()[0]) as again:
        again.allocate(again.info.total_bytes // 2)


def test_a_crashed_kernel_is_an_error_at_synchronization_and_closing_raises_nothing(package: str) -> None:
    code = (
        "import numpy as np\n"
        "from engine.kernels import ONE_THREAD, kernel\n"
        "from trtopt.engine.cuda.device import CudaError, open_device\n"
        f"with open_device(package={package!r}) as device:\n"
        "    stream, crash = device.stream(), kernel(device, 'crash')\n"
        "    device.allocate(8), device.pinned(8)\n"
        "    stream.launch(crash, ONE_THREAD, np.uint64(0))\n"
        "    try: stream.synchronize()\n"
        "    except CudaError as error: print('SAID', error)\n"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT / "tests",
        env=os.environ | {"PYTHONPATH": path},
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "SAID" in done.stdout
    assert "illegal" in done.stdout or "address" in done.stdout


def test_another_thread_can_use_a_device_after_making_it_current(device: Device) -> None:
    results: list[object] = []

    def work() -> None:
        try:
            with device.current():
                stream, there, back = device.stream(), device.allocate(4), np.zeros(4, np.uint8)
                stream.fill(there, 4, 3)
                stream.to_host(back, there)
                stream.synchronize()
                results.append(back.tolist())
        except CudaError as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [[3, 3, 3, 3]]


def test_memory_is_shared_with_torch_in_the_same_process(device: Device) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(1000, dtype=torch.float32, device="cuda")
    torch.cuda.synchronize()
    stream, back = device.stream(), np.empty(1000, np.float32)
    stream.to_host(back, tensor.data_ptr())
    stream.synchronize()
    assert back.tolist() == list(range(1000))
    device.close()
    assert float(tensor.sum()) == sum(range(1000))


def cycle(package: str) -> None:
    x = np.arange(1024, dtype=np.float32)
    with open_device(package=package) as device:
        stream, scaled = device.stream(), kernel(device, "scaled")
        pinned, source, target = device.pinned(8 << 20), device.allocate(64 << 20), device.allocate(x.nbytes)
        array = pinned.array(x.shape, x.dtype)
        array[:] = x
        start = stream.record(device.event())

        def work() -> None:
            stream.launch(scaled, Launch(grid=(4,), block=(256,)), target, source, np.float32(2), np.int32(x.size))

        stream.to_device(source, array)
        if device.backend.GRAPHS:
            stream.replay(stream.capture(work))
        else:
            work()
        stream.to_host(array, target)
        end = stream.record(device.event())
        end.synchronize()
        assert end.since(start) > 0
        assert array[5] == 10


def test_a_thousand_open_run_close_cycles_keep_device_and_host_memory_flat(device: Device, package: str) -> None:
    for _ in range(50):
        cycle(package)
    free, held = device.free_bytes(), resident()
    began = time.perf_counter()
    for _ in range(1000):
        cycle(package)
    grown = resident() - held
    seconds = time.perf_counter() - began
    print(
        f"1,000 cycles in {seconds:.1f} s: device {free - device.free_bytes():+d} bytes, host {grown / 1024:+.0f} KiB"
    )
    assert device.free_bytes() == free
    assert grown < 4 << 20


def test_cycles_that_also_release_the_context_keep_memory_flat(package: str) -> None:
    for _ in range(3):
        cycle(package)
    with open_device(package=package) as device:
        free, held = device.free_bytes(), resident()
    for _ in range(20):
        cycle(package)
    with open_device(package=package) as device:
        print(f"20 contexts: device {free - device.free_bytes():+d} bytes, host {(resident() - held) / 1024:+.0f} KiB")
        assert device.free_bytes() == free
    assert resident() - held < 16 << 20
