"""Readings of `trtopt watch` in Prometheus text (exposition format 0.0.4), and the HTTP server that provides them.

Touches: a TCP port while the server runs.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from trtopt.bench.watch import METRICS, Seen
from trtopt.errors import TrtoptError, UsageError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FITTING = "trtopt_fitting_batch_size"


def exposition(seen: Seen, run: str) -> str:
    """Return all readings as Prometheus text. `run` names the run directory whose batch sizes are included."""
    lines: list[str] = []
    for name, metric in METRICS.items():
        samples = [(gpu, gpu.readings[name]) for gpu in seen.gpus if name in gpu.readings]
        lines += _head(metric.exported, metric.text) if samples else []
        lines += [
            f"{metric.exported}{_labels(gpu=str(gpu.index), name=gpu.name, uuid=gpu.uuid)} {value!r}"
            for gpu, value in samples
        ]
    if seen.fits:
        lines += _head(
            _FITTING, "Largest batch that fits into the free memory, in a process that already uses the GPU."
        )
    lines += [f"{_FITTING}{_labels(gpu=str(fit.gpu), run=run)} {fit.batch}" for fit in seen.fits]
    return "".join(f"{line}\n" for line in lines)


def _head(name: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} gauge"]


def _labels(**labels: str) -> str:
    escaped = {
        key: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for key, value in labels.items()
    }
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped.items()) + "}"


def parse_address(text: str) -> tuple[str, int]:
    """Parse `HOST:PORT`, with an IPv6 address in brackets, and return the host and the port.

    Raises:
        UsageError: `text` is not an address.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or parts.netloc != text or "@" in text:
        raise UsageError(f"--listen {text!r} is not an address", fix="Write HOST:PORT, as in --listen 127.0.0.1:9400")
    return host, port


@contextlib.contextmanager
def serving(address: tuple[str, int], scrape: Callable[[], str]) -> Iterator[str]:
    """Serve `/metrics` until the block ends, and yield its URL.

    Args:
        address: host and port; port 0 lets the system choose one.
        scrape: returns the text to serve. Called once per request, in a thread of its own.

    Raises:
        UsageError: the port is in use, or the address does not belong to this machine.
    """

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "trtopt", ""
        timeout = 10  # seconds after which the thread of a silent client ends

        def do_GET(self) -> None:
            if urlsplit(self.path).path != "/metrics":
                self.send_error(404, "the readings are at /metrics")
                return
            try:
                body = scrape().encode()
            except TrtoptError as error:  # such as a GPU that no longer answers: Prometheus will ask again
                self.send_error(503, str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass  # the default prints a line per request, into the table on the terminal

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET

        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exc_info()[1], OSError):  # a client that disconnects is not worth a traceback
                super().handle_error(request, client_address)

    try:
        server = Server(address, Handler)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"--listen {address[0]}:{address[1]} cannot be opened", why=why, fix="Choose another port"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="trtopt-metrics", daemon=True)
    thread.start()
    try:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
