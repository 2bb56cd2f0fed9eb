"""`compose.yaml`: the servers of a plan, Prometheus that reads their metrics, and Grafana that shows them.

Docker cannot limit the memory of a GPU. MIG does, with a server per slice, or MPS, which limits a process.

Touches: nothing.
"""

from __future__ import annotations

import math
from typing import Any

from trtopt.fleet.demand import MB
from trtopt.fleet.plan import Plan
from trtopt.fleet.servers import STOP_SECONDS, Server

PROMETHEUS = "prom/prometheus:v3.5.0"
GRAFANA = "grafana/grafana:12.1.1"
_PORTS = (8000, 8001, 8002)


def compose(plan: Plan, servers: tuple[Server, ...], image: str, *, mps: bool) -> dict[str, Any]:
    """Return the content of `compose.yaml`.

    Args:
        plan: the plan.
        servers: its servers.
        image: the reference of the server's image.
        mps: let NVIDIA's MPS limit the memory of each server to what is planned. Its daemon must run on the host.
    """
    services: dict[str, Any] = {server.name: _server(plan, server, image, mps=mps) for server in servers}
    services["prometheus"] = {
        "image": PROMETHEUS,
        "ports": ["127.0.0.1:9090:9090"],
        "volumes": ["./prometheus.yml:/etc/prometheus/prometheus.yml:ro"],
        "healthcheck": _healthy("wget -q --spider http://localhost:9090/-/healthy", start="10s"),
        "restart": "unless-stopped",
    }
    services["grafana"] = {
        "image": GRAFANA,
        "ports": ["127.0.0.1:3000:3000"],
        "environment": {"GF_AUTH_ANONYMOUS_ENABLED": "true", "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer"},
        "volumes": ["./grafana:/etc/grafana/provisioning:ro"],
        "healthcheck": _healthy("wget -q --spider http://localhost:3000/api/health", start="30s"),
        "depends_on": {"prometheus": {"condition": "service_healthy"}},
        "restart": "unless-stopped",
    }
    return {"services": services}


def _server(plan: Plan, server: Server, image: str, *, mps: bool) -> dict[str, Any]:
    devices = [plan.fleet.gpus[gpu].device for gpu in server.gpus]
    service: dict[str, Any] = {
        "image": image,
        "command": server.command(plan),
        "ports": [f"{server.port + i}:{port}" for i, port in enumerate(_PORTS)],
        "volumes": [f"./{server.repository}:/models:ro"],
        "shm_size": "1g",
        "healthcheck": _healthy("curl -sf http://localhost:8000/v2/health/ready", start="300s"),
        "deploy": {
            "resources": {
                "reservations": {"devices": [{"driver": "nvidia", "device_ids": devices, "capabilities": ["gpu"]}]}
            }
        },
        "stop_grace_period": f"{STOP_SECONDS}s",
        "restart": "unless-stopped",
    }
    if mps:
        limits = [f"{i}={math.ceil((plan.fleet.process + plan.used(gpu)) / MB)}M" for i, gpu in enumerate(server.gpus)]
        service["environment"] = {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": ",".join(limits)}
        service["volumes"].append("/tmp/nvidia-mps:/tmp/nvidia-mps")
        service["ipc"] = "host"
        del service["shm_size"]
    return service


def _healthy(command: str, *, start: str) -> dict[str, Any]:
    return {"test": ["CMD-SHELL", command], "interval": "10s", "timeout": "5s", "retries": 3, "start_period": start}


def prometheus(servers: tuple[Server, ...]) -> dict[str, Any]:
    """Return the content of `prometheus.yml`."""
    targets = [f"{server.name}:{_PORTS[2]}" for server in servers]
    job = {"job_name": "triton", "static_configs": [{"targets": targets}]}
    return {"global": {"scrape_interval": "5s"}, "scrape_configs": [job]}
