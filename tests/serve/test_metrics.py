"""`trtopt watch --triton`: readings and alerts from a server's metrics."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from support import Done

from trtopt.errors import EnvironmentUnableError
from trtopt.serve import metrics

TEXT = """# HELP nv_inference_request_success Number of successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="a",version="1"} %(answered)d
nv_inference_request_failure{model="a",reason="OTHER",version="1"} 1
nv_inference_request_failure{model="a",reason="REJECTED",version="1"} %(rejected)d
nv_inference_count{model="a",version="1"} %(answered)d
nv_inference_exec_count{model="a",version="1"} 10
nv_inference_request_duration_us{model="a",version="1"} %(spent)d
nv_inference_queue_duration_us{model="a",version="1"} 4000
nv_inference_pending_request_count{model="a",version="1"} 3
nv_inference_request_summary_us{model="a",version="1",quantile="0.99"} 9000
"""
EARLIER = TEXT % {"answered": 10, "rejected": 0, "spent": 20_000}
LATER = TEXT.replace(" 10\n", " 15\n").replace(" 4000", " 44000") % {"answered": 30, "rejected": 2, "spent": 120_000}


def test_readings_are_differences_per_second() -> None:
    (served,) = metrics.between(metrics.parse(EARLIER), metrics.parse(LATER), 2.0)
    assert served.model == "a"
    assert served.readings == {
        "throughput": 10.0,
        "latency_mean": 5.0,
        "latency_p99": 9.0,
        "queue_mean": 2.0,
        "batch": 4.0,
        "failed": 2.0,
        "pending": 3.0,
    }


def test_a_model_without_requests_has_no_latency_and_breaks_no_limit_on_it() -> None:
    (served,) = metrics.between(metrics.parse(EARLIER), metrics.parse(EARLIER), 1.0)
    assert math.isnan(served.readings["latency_mean"])
    assert not metrics.broken(metrics.parse_alerts(["latency_p99=1ms"]), [served])
    assert metrics.broken(metrics.parse_alerts(["throughput=1"]), [served])


def test_a_reloaded_model_counts_from_zero() -> None:
    (served,) = metrics.between(metrics.parse(LATER), metrics.parse(EARLIER), 1.0)
    assert served.readings["throughput"] == 10.0


@pytest.mark.parametrize("text", ["latency_p99", "latency_p98=2ms", "latency_p99=2", "throughput=x", "failed=-1", "="])
def test_an_alert_that_does_not_parse_is_refused(cli: Callable[..., Done], text: str) -> None:
    done = cli("watch", "--triton", "http://127.0.0.1:1", "--alert", text)
    assert done.code == 2
    assert "--alert" in done.err


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Serve two readings: the earlier one once, then the later one."""
    texts = [EARLIER]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (texts.pop() if texts else LATER).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("alerts", "code", "line"),
    [
        ((), 0, "a"),
        (("--alert", "latency_p99=10ms,failed=2"), 0, "a"),
        (("--alert", "latency_p99=8ms"), 1, "alert: a: latency_p99 is 9 ms, above 8 ms"),
        (("--alert", "failed=0", "--alert", "pending=1"), 1, "alert: a: pending is 3, above 1"),
    ],
)
def test_an_alert_decides_the_exit_code(
    cli: Callable[..., Done], endpoint: str, alerts: tuple[str, ...], code: int, line: str
) -> None:
    done = cli("watch", "--triton", endpoint, "--once", "--interval", "0.2", *alerts)
    assert done.code == code
    assert line in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("--triton", "http://127.0.0.1:1"), 3, "no metrics at http://127.0.0.1:1/metrics"),
        (("--triton", "localhost:8002"), 2, "Write --triton http://HOST:8002"),
        (("--triton", "http://127.0.0.1:1", "--listen", "127.0.0.1:9400"), 2, "--listen has no effect"),
        (("--alert", "failed=0"), 2, "--alert has no effect"),
    ],
)
def test_a_wrong_address_or_flag_gets_one_line(
    cli: Callable[..., Done], arguments: tuple[str, ...], code: int, line: str
) -> None:
    done = cli("watch", *arguments)
    assert done.code == code
    assert line in done.err


def test_a_service_that_is_not_http_is_an_error() -> None:
    def greet(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(b"220 mail.example ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=greet, args=(listening,), daemon=True).start()
        with pytest.raises(EnvironmentUnableError, match="no metrics at"):
            metrics.read(f"http://127.0.0.1:{listening.getsockname()[1]}/metrics")


def test_an_unknown_model_is_an_error(cli: Callable[..., Done], endpoint: str) -> None:
    done = cli("watch", "--triton", endpoint, "--model", "b", "--once")
    assert done.code == 2
    assert "has no model b. Name one of a" in done.err
