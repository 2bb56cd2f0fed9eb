"""`kubernetes.yaml`: a claim for the repository, and for each server a deployment with its GPUs and a service.

Touches: nothing.
"""

from __future__ import annotations

from typing import Any

from trtopt.fleet.plan import Plan
from trtopt.fleet.servers import STOP_SECONDS, Server

_CLAIM = "trtopt-models"
_GIB = 2**30
_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}


def manifests(plan: Plan, servers: tuple[Server, ...], image: str, size: int) -> list[dict[str, Any]]:
    """Return the objects of `kubernetes.yaml`.

    Args:
        plan: the plan.
        servers: its servers.
        image: the reference of the server's image.
        size: bytes of the repository; the claim has twice that, for a second version.
    """
    access = "ReadWriteOnce" if len(servers) == 1 else "ReadWriteMany"
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": _CLAIM},
        "spec": {
            "accessModes": [access],
            "resources": {"requests": {"storage": f"{2 * size // _GIB + 1}Gi"}},
        },
    }
    found: list[dict[str, Any]] = [claim]
    for server in servers:
        found += [_deployment(plan, server, image), _service(server)]
    return found


def _deployment(plan: Plan, server: Server, image: str) -> dict[str, Any]:
    labels = {"app": server.name}
    profile = plan.fleet.gpus[server.gpus[0]].profile
    resource = f"nvidia.com/mig-{profile}" if profile else "nvidia.com/gpu"
    place = server.repository.partition("/")[2]
    container = {
        "name": "triton",
        "image": image,
        "args": server.command(plan),
        "ports": [{"name": name, "containerPort": port} for name, port in _PORTS.items()],
        "resources": {"limits": {resource: str(len(server.gpus))}},
        "startupProbe": {**_probe("ready"), "failureThreshold": 60},
        "readinessProbe": _probe("ready"),
        "livenessProbe": _probe("live"),
        "volumeMounts": [
            {"name": "models", "mountPath": "/models", "readOnly": True, **({"subPath": place} if place else {})},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    volumes = [
        {"name": "models", "persistentVolumeClaim": {"claimName": _CLAIM}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
    ]
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": str(_PORTS["metrics"])}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": server.name, "labels": labels},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # a second pod would need the same GPUs
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": scraped},
                "spec": {
                    "containers": [container],
                    "volumes": volumes,
                    "terminationGracePeriodSeconds": STOP_SECONDS,
                },
            },
        },
    }


def _probe(state: str) -> dict[str, Any]:
    return {"httpGet": {"path": f"/v2/health/{state}", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5}


def _service(server: Server) -> dict[str, Any]:
    ports = [{"name": name, "port": port, "targetPort": name} for name, port in _PORTS.items()]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": server.name, "labels": {"app": server.name}},
        "spec": {"selector": {"app": server.name}, "ports": ports},
    }
