"""`trtopt watch`: readings, the batch size that fits, the Prometheus server, and the live table."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from support import Done

from trtopt.bench import prometheus
from trtopt.bench.watch import METRICS, GpuState, Seen, fits, measured_limit
from trtopt.codec import encode
from trtopt.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_UNABLE, StoreError, UsageError
from trtopt.types import BatchLimit, Benchmark

NVML = '''
"""Fake pynvml with two GPUs: the second has no power sensor and does not report utilization."""
from types import SimpleNamespace as Of
NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2
NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1
class NVMLError(Exception): pass
class NVMLError_LibraryNotFound(NVMLError): pass
class NVMLError_DriverNotLoaded(NVMLError): pass
class NVMLError_NotSupported(NVMLError): pass
{extra}
def nvmlInit(): {init}
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return {count}
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(gpu): return "NVIDIA H200" if gpu == 0 else 'Odd "GPU"'
def nvmlDeviceGetUUID(gpu): return f"GPU-{{gpu}}"
def nvmlDeviceGetMemoryInfo(gpu): return Of(used=4 << 30, free=140 << 30, total=144 << 30)
def only_first(gpu, value):
    if gpu: raise NVMLError_NotSupported("Not Supported")
    return value
def nvmlDeviceGetUtilizationRates(gpu): return only_first(gpu, Of(gpu=87, memory=0))
def nvmlDeviceGetTemperature(gpu, sensor): return 41
def nvmlDeviceGetPowerUsage(gpu): return only_first(gpu, 312500)
def nvmlDeviceGetEnforcedPowerLimit(gpu): return only_first(gpu, 700000)
def nvmlDeviceGetClockInfo(gpu, clock): return 1980 if clock == NVML_CLOCK_SM else 3201
def nvmlDeviceGetPcieThroughput(gpu, counter): return only_first(gpu, 5_000_000 if counter else 250_000)
'''

LIMIT = BatchLimit(
    target="runs/model.onnx",
    device="cuda",
    batch=4096,
    limited_by="memory",
    why="4,097 exceeds the memory",
    memory_limit=100 << 30,
    latency_limit=float("nan"),
    total=100 << 30,
    base=1 << 30,
    weights=1 << 30,
    inputs_outputs=1 << 30,
    bytes_fixed=2 << 30,
    bytes_per_sample=24.0 * 2**20,
    probes=(),
)


def write_nvml(folder: Path, *, init: str = "pass", count: str = "2", extra: str = "") -> Path:
    (folder / "pynvml.py").write_text(NVML.format(init=init, count=count, extra=extra))
    return folder


@pytest.fixture
def use_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def use(**parts: str) -> None:
        monkeypatch.syspath_prepend(str(write_nvml(tmp_path, **parts)))
        monkeypatch.delitem(sys.modules, "pynvml", raising=False)

    yield use
    sys.modules.pop("pynvml", None)


def run_dir(folder: Path, limit: BatchLimit | None) -> Path:
    folder.mkdir(exist_ok=True)
    benchmark = Benchmark(targets=(), timings=(), limit=limit)
    (folder / "benchmark.json").write_text(json.dumps(encode(benchmark)))
    return folder


def gpu(free: float | None) -> GpuState:
    return GpuState(index=0, name="GPU", uuid="u", readings={} if free is None else {"memory_free": free})


def test_json_contains_the_supported_readings_only(cli: Callable[..., Done], use_nvml: Callable[..., None]) -> None:
    use_nvml()
    done = cli("watch", "--once", "--format", "json")
    assert done.code == 0
    printed = json.loads(done.out)
    assert (printed["schema_version"], printed["fits"]) == (1, [])
    first, second = printed["gpus"]
    assert first == {
        "index": 0,
        "name": "NVIDIA H200",
        "uuid": "GPU-0",
        "readings": {
            "memory_used": 4 * 2**30,
            "memory_free": 140 * 2**30,
            "memory_total": 144 * 2**30,
            "utilisation": 0.87,
            "memory_utilisation": 0.0,
            "temperature": 41,
            "power": 312.5,
            "power_limit": 700,
            "sm_clock": 1.98e9,
            "memory_clock": 3.201e9,
            "pcie_in": 5e9,
            "pcie_out": 250e6,
        },
    }
    assert not {"power", "power_limit", "utilisation"} & second["readings"].keys()


def test_text_has_a_dash_for_unsupported_readings(
    cli: Callable[..., Done], use_nvml: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml()
    monkeypatch.setenv("COLUMNS", "80")
    done = cli("watch", "--once")
    first, second = (" ".join(line.split()) for line in done.out.splitlines()[1:3])
    assert first == "0 H200 4.0 / 144.0 GiB 87 % 41 °C 312 / 700 W 1,980 MHz 5.0 / 0.2"
    assert second == '1 Odd "GPU" 4.0 / 144.0 GiB – 41 °C – 1,980 MHz –'


def test_the_batch_that_fits_now_is_printed_below_the_table(
    cli: Callable[..., Done], use_nvml: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_nvml()
    monkeypatch.setenv("COLUMNS", "140")
    folder = run_dir(tmp_path / "run", LIMIT)
    done = cli("watch", folder, "--once")
    needs = (
        "model.onnx needs 2,048 MiB plus 24.00 MiB per sample in a process that already uses the GPU; "
        "measured up to batch 4096"
    )
    assert f"GPU 0: batch 5888 fits now: 143,360 MiB are free, {needs}" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("free", "batch"),
    [(2 * 2**30 + 10 * 24 * 2**20, 10), (2 * 2**30 + 10 * 24 * 2**20 - 1, 9), (2 * 2**30, 0), (0, 0)],
)
def test_the_free_memory_beyond_the_fixed_part_is_divided_among_samples(free: int, batch: int) -> None:
    (fit,) = fits(LIMIT, (gpu(free),))
    assert fit.batch == batch


def test_more_than_measured_fits_only_if_memory_was_the_limit() -> None:
    free = gpu(2 * 2**30 + 5000 * 24 * 2**20)
    (fit,) = fits(LIMIT, (free,))
    assert (fit.batch, fit.why.endswith("; measured up to batch 4096")) == (5000, True)
    (fit,) = fits(replace(LIMIT, limited_by="latency", why="5,000 takes 30 ms"), (free,))
    assert (fit.batch, fit.why) == (4096, "there is memory for 5,000, but 5,000 takes 30 ms")


def test_a_gpu_that_does_not_report_free_memory_has_no_batch_that_fits() -> None:
    assert fits(LIMIT, (gpu(None),)) == ()


def test_without_a_known_memory_per_sample_the_measured_batch_fits_or_none() -> None:
    (fit,) = fits(replace(LIMIT, bytes_per_sample=0.0), (gpu(1 << 40),))
    assert fit.batch == LIMIT.batch
    (fit,) = fits(replace(LIMIT, bytes_per_sample=0.0), (gpu(1 << 20),))
    assert fit.batch == 0


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (None, "measured without --max-batch"),
        (replace(LIMIT, device="cpu"), "measured on the CPU"),
    ],
)
def test_a_benchmark_without_gpu_memory_says_how_to_measure_it(
    tmp_path: Path, limit: BatchLimit | None, message: str
) -> None:
    with pytest.raises(StoreError, match=message) as error:
        measured_limit(run_dir(tmp_path, limit))
    assert f"trtopt bench {tmp_path} --max-batch --device cuda" in error.value.fix


@pytest.mark.parametrize("content", ["", "{", "[]", '{"targets": 1}', "[" * 100_000])
def test_a_damaged_benchmark_is_an_error_not_a_crash(tmp_path: Path, content: str) -> None:
    (tmp_path / "benchmark.json").write_text(content)
    with pytest.raises(StoreError, match=r"is not a benchmark of this version of trtopt"):
        measured_limit(tmp_path)


def test_a_run_without_a_benchmark_is_rejected_before_any_gpu_is_read(cli: Callable[..., Done], tmp_path: Path) -> None:
    done = cli("watch", tmp_path, "--once")
    assert done.code == EXIT_ERROR
    assert "has no benchmark.json: its memory was never measured. Measure it: trtopt bench" in " ".join(
        done.err.split()
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"init": "raise NVMLError_LibraryNotFound('NVML Shared Library Not Found')"}, "NVML Shared Library Not Found"),
        (
            {"init": "raise NVMLError('RM has detected an NVML/RM version mismatch.')"},
            "version mismatch. Check the driver with nvidia-smi",
        ),
        ({"count": "0"}, "the NVIDIA driver lists none"),
        ({"count": "fails()", "extra": "def fails(): raise NVMLError('GPU is lost')"}, "GPU is lost"),
    ],
)
def test_without_a_gpu_one_line_gives_the_reason_and_the_exit_code_is_3(
    cli: Callable[..., Done], use_nvml: Callable[..., None], parts: dict[str, str], message: str
) -> None:
    use_nvml(**parts)
    done = cli("watch", "--once")
    assert done.code == EXIT_UNABLE
    assert done.out == ""
    assert done.err.startswith("error: no GPU can be watched: ")
    assert len(done.err.splitlines()) == 1
    assert message in done.err


def test_without_nvidia_ml_py_the_extra_to_install_is_named(
    cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    done = cli("watch", "--once")
    assert done.code == EXIT_UNABLE
    assert "pip install nvidia-ml-py" in done.err


def test_a_gpu_that_no_longer_answers_does_not_affect_the_others(
    cli: Callable[..., Done], use_nvml: Callable[..., None]
) -> None:
    lost = "def nvmlDeviceGetHandleByIndex(index):\n    if index: raise NVMLError('GPU is lost')\n    return index\n"
    use_nvml()
    import pynvml  # type: ignore[import-not-found, unused-ignore]

    exec(lost, pynvml.__dict__)
    done = cli("watch", "--once", "--format", "json")
    first, second = json.loads(done.out)["gpus"]
    assert first["readings"]["power"] == 312.5
    assert (second["name"], second["readings"]) == ("does not answer", {})


def seen() -> Seen:
    readings = dict.fromkeys(METRICS, 0.5)
    odd = GpuState(index=1, name='a"b\\c\nd', uuid="", readings={"temperature": 40.0})
    return Seen(
        gpus=(GpuState(index=0, name="GPU", uuid="u", readings=readings), odd),
        fits=fits(LIMIT, (gpu(LIMIT.bytes_fixed + 4096 * LIMIT.bytes_per_sample),)),
    )


def test_the_parser_of_prometheus_reads_the_same_values() -> None:
    from prometheus_client import parser

    families = {
        family.name: family for family in parser.text_string_to_metric_families(prometheus.exposition(seen(), "r"))
    }
    assert families.keys() == {metric.exported for metric in METRICS.values()} | {"trtopt_fitting_batch_size"}
    for family in families.values():
        assert family.type == "gauge"
        assert family.documentation
    hot = families["trtopt_gpu_temperature_celsius"].samples
    assert [(sample.labels["gpu"], sample.value) for sample in hot] == [("0", 0.5), ("1", 40.0)]
    assert hot[1].labels["name"] == 'a"b\\c\nd'
    (batch,) = families["trtopt_fitting_batch_size"].samples
    assert (batch.labels, batch.value) == ({"gpu": "0", "run": "r"}, 4096)


def test_the_exposition_has_each_metric_once_and_omits_unsupported_ones() -> None:
    text = prometheus.exposition(Seen(gpus=(gpu(5.0),), fits=()), "r")
    assert text == (
        "# HELP trtopt_gpu_memory_free_bytes Free memory.\n"
        "# TYPE trtopt_gpu_memory_free_bytes gauge\n"
        'trtopt_gpu_memory_free_bytes{gpu="0",name="GPU",uuid="u"} 5.0\n'
    )


def test_only_metrics_are_served_with_the_content_type_of_prometheus() -> None:
    with prometheus.serving(("127.0.0.1", 0), lambda: prometheus.exposition(seen(), "r")) as url:
        with urlopen(url, timeout=10) as answer:
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert answer.read().decode() == prometheus.exposition(seen(), "r")
        with pytest.raises(HTTPError) as refused:
            urlopen(url.replace("/metrics", "/etc"), timeout=10)
        assert refused.value.code == 404
        refused.value.close()


def test_a_failed_scrape_gets_an_error_and_the_next_one_succeeds() -> None:
    answers = iter([UsageError("the driver is gone"), "fine 1\n"])

    def scrape() -> str:
        answer = next(answers)
        if isinstance(answer, UsageError):
            raise answer
        return answer

    with prometheus.serving(("127.0.0.1", 0), scrape) as url:
        with pytest.raises(HTTPError) as refused:
            urlopen(url, timeout=10)
        assert (refused.value.code, "driver is gone" in refused.value.reason) == (503, True)
        refused.value.close()
        with urlopen(url, timeout=10) as answer:
            assert answer.read() == b"fine 1\n"


def test_a_client_that_disconnects_or_stays_silent_blocks_neither_the_next_nor_the_shutdown(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with prometheus.serving(("127.0.0.1", 0), lambda: "x 1\n" * 500_000) as url:
        port = int(url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as rude:
            rude.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            rude.recv(10)
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            rude.close()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/metrics")
            assert connection.getresponse().status == 200
            connection.close()
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_a_port_in_use_is_an_error_of_one_line(cli: Callable[..., Done], use_nvml: Callable[..., None]) -> None:
    use_nvml()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("watch", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.code == EXIT_ERROR
    assert "cannot be opened: Address already in use. Choose another port" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("text", ["9400", "localhost", "127.0.0.1:", "127.0.0.1:http", "h:99999", "u@h:1", "h:1/x", ""])
def test_an_invalid_address_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        prometheus.parse_address(text)


def test_an_address_is_a_host_and_a_port() -> None:
    assert prometheus.parse_address("127.0.0.1:9400") == ("127.0.0.1", 9400)
    assert prometheus.parse_address("[::1]:80") == ("::1", 80)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "junit"], "watch does not support --format junit"),
        (["--once", "--listen", "127.0.0.1:0"], "cannot be combined"),
    ],
)
def test_contradicting_flags_are_rejected(cli: Callable[..., Done], flags: list[str], message: str) -> None:
    done = cli("watch", *flags)
    assert done.code == EXIT_ERROR
    assert message in done.err


def test_on_a_terminal_the_table_updates_in_place_and_ctrl_c_restores_the_cursor(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(write_nvml(tmp_path)), "TERM": "xterm", "COLUMNS": "100"}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "trtopt", "watch", "--interval", "0.1"]
    watching = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    shown = b""
    try:
        while shown.count(b"0 H200") < 3:
            shown += os.read(ours, 4096)
        watching.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # Linux reports a closed terminal as an error
            while more := os.read(ours, 4096):
                shown += more
        _, err = watching.communicate(timeout=20)
    finally:
        watching.kill()
        os.close(ours)
    assert watching.returncode == EXIT_INTERRUPTED
    assert err == b""
    assert b"\x1b[1A" in shown  # the cursor moves up, over the previous table
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")  # the cursor is shown again


def test_a_live_watch_serves_while_it_prints_and_ctrl_c_exits_silently_with_130(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(write_nvml(tmp_path))}
    command = [sys.executable, "-m", "trtopt", "watch", "--listen", "127.0.0.1:0", "--interval", "0.1"]
    watching = subprocess.Popen(
        [*command, "--format", "json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert watching.stderr is not None
        assert watching.stdout is not None
        url = watching.stderr.readline().split()[-1]
        with urlopen(url, timeout=10) as answer:
            assert b'trtopt_gpu_power_watts{gpu="0"' in answer.read()
        lines = [json.loads(watching.stdout.readline()) for _ in range(2)]
        assert lines[0]["gpus"][0]["readings"]["temperature"] == 41
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=20)
    finally:
        watching.kill()
    assert watching.returncode == EXIT_INTERRUPTED
    assert err == ""
