"""A Grafana dashboard of a fleet: utilisation, memory, latency and throughput, from the metrics of Triton.

Touches: nothing.
"""

from __future__ import annotations

from typing import Any

_WINDOW = "[1m]"
SOURCE = "prometheus"
_HEIGHT, _WIDTH = 8, 12


def _per_model(metric: str) -> str:
    return f"sum by (model) (rate({metric}{_WINDOW}))"


PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Utilisation of the GPUs", "percentunit", (("nv_gpu_utilization", "{{gpu_uuid}}"),)),
    (
        "Memory of the GPUs",
        "bytes",
        (("nv_gpu_memory_used_bytes", "{{gpu_uuid}} used"), ("nv_gpu_memory_total_bytes", "{{gpu_uuid}} total")),
    ),
    (
        "Latency",
        "µs",
        (
            (
                f"{_per_model('nv_inference_request_duration_us')} / {_per_model('nv_inference_request_success')}",
                "{{model}} mean",
            ),
            ('max by (model) (nv_inference_request_summary_us{quantile="0.99"})', "{{model}} p99"),
        ),
    ),
    ("Throughput", "reqps", ((_per_model("nv_inference_request_success"), "{{model}}"),)),
    (
        "Time in the queue",
        "µs",
        (
            (
                f"{_per_model('nv_inference_queue_duration_us')} / {_per_model('nv_inference_request_success')}",
                "{{model}} mean",
            ),
        ),
    ),
    (
        "Samples per run",
        "none",
        ((f"{_per_model('nv_inference_count')} / {_per_model('nv_inference_exec_count')}", "{{model}}"),),
    ),
    ("Failures", "reqps", ((_per_model("nv_inference_request_failure"), "{{model}}"),)),
    ("Waiting requests", "none", (("sum by (model) (nv_inference_pending_request_count)", "{{model}}"),)),
)
"""Title, unit of Grafana, and queries with their legends."""


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    panels = []
    for i, (title, unit, queries) in enumerate(PANELS):
        targets = [
            {"refId": chr(ord("A") + j), "expr": query, "legendFormat": legend}
            for j, (query, legend) in enumerate(queries)
        ]
        panels.append(
            {
                "id": i + 1,
                "type": "timeseries",
                "title": title,
                "datasource": {"type": "prometheus", "uid": SOURCE},
                "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": i % 2 * _WIDTH, "y": i // 2 * _HEIGHT},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": targets,
            }
        )
    return {
        "uid": "trtopt-fleet",
        "title": "trtopt fleet",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": panels,
    }


def provisioning() -> dict[str, dict[str, Any]]:
    """Return the files that Grafana finds its source and its dashboards by, by their path in `grafana/`."""
    source = {
        "name": "Prometheus",
        "uid": SOURCE,
        "type": "prometheus",
        "access": "proxy",
        "url": "http://prometheus:9090",
        "isDefault": True,
    }
    provider = {
        "name": "trtopt",
        "type": "file",
        "options": {"path": "/etc/grafana/provisioning/dashboards"},
    }
    return {
        "datasources/prometheus.yaml": {"apiVersion": 1, "datasources": [source]},
        "dashboards/trtopt.yaml": {"apiVersion": 1, "providers": [provider]},
    }
