"""The files of a fleet against the schemas of Docker Compose and Kubernetes, and against metrics of a real server."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fleet.test_pack import fleet as models
from fleet.test_pack import model

from trtopt.fleet import compose, dashboard, kubernetes, load, planning, shortage
from trtopt.fleet.demand import MB, Gpu
from trtopt.fleet.plan import Plan
from trtopt.fleet.servers import given, servers

METRICS = Path(__file__).parent / "metrics.txt"
"""The metrics of a real server, of version 2.51 with two models, on a machine without a GPU."""
OF_GPUS = "".join(
    f'{name}{{gpu_uuid="GPU-0"}} 0.5\n'
    for name in ("nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes")
)
"""Those of a GPU, as the documentation of the server has them (docs/user_guide/metrics.md)."""
IMAGE = "nvcr.io/nvidia/tritonserver:26.03-py3"
SLICES = tuple(Gpu(device=f"0:{i}", name="H/3g.40gb", memory=1000 * MB, speed=3 / 7, profile="3g.40gb") for i in (0, 1))


@functools.cache
def plans() -> list[Plan]:
    """Return plans on two GPUs with priorities, and on two slices."""
    two = (model("a", 700, limit=80.0), model("b", 300, priority=2, urgent=0.1))
    whole = planning.plan(models(*two, sizes=(1000, 1000)), "priority")
    sliced = planning.plan(replace(models(model("a", 400, limit=80.0)), gpus=SLICES), "dynamic")
    return [whole, sliced]


@pytest.fixture(scope="module", params=[0, 1], ids=["whole", "slices"])
def plan(request: pytest.FixtureRequest) -> Plan:
    made = plans()[request.param]
    assert not shortage.shortages(made)
    return made


def schema(package: str, path: str) -> dict[str, Any]:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package that holds {path} is not installed")
    return json.loads((Path(found.submodule_search_locations[0]) / path).read_text())


def test_a_server_has_the_time_to_answer_its_last_requests(plan: Plan) -> None:
    service = next(iter(compose.compose(plan, servers(plan), IMAGE, mps=False)["services"].values()))
    deployment = kubernetes.manifests(plan, servers(plan), IMAGE, 10**9)[1]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert service["stop_grace_period"] == f"{grace}s"
    assert grace > 30  # what Triton itself waits for


@pytest.mark.parametrize("mps", [False, True])
def test_compose_is_valid(plan: Plan, mps: bool) -> None:
    from jsonschema import Draft7Validator

    validator = Draft7Validator(schema("compose", "config/compose_spec.json"))
    content = compose.compose(plan, servers(plan), IMAGE, mps=mps)
    assert not [error.message for error in validator.iter_errors(content)]
    wrong = {**content, "services": {"triton": {"image": IMAGE, "unknown": []}}}
    assert list(validator.iter_errors(wrong))


def test_the_manifests_are_valid(plan: Plan) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for each in kubernetes.manifests(plan, servers(plan), IMAGE, 10**9):
        validate.validate(each, "1.32", strict=True)
    deployment = kubernetes.manifests(plan, servers(plan), IMAGE, 10**9)[1]
    deployment["spec"]["template"]["spec"]["gpus"] = 1
    with pytest.raises(validate.ValidationError):
        validate.validate(deployment, "1.32", strict=True)


def test_a_server_for_each_slice_and_one_for_all_whole_gpus() -> None:
    whole, sliced = plans()
    content = compose.compose(whole, servers(whole), IMAGE, mps=True)
    assert list(content["services"]) == ["triton", "prometheus", "grafana"]
    triton = content["services"]["triton"]
    (device,) = triton["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["0", "1"]
    limits = [(whole.fleet.process + whole.used(gpu)) // MB for gpu in (0, 1)]
    assert triton["environment"] == {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={limits[0]}M,1={limits[1]}M"}
    content = compose.compose(sliced, servers(sliced), IMAGE, mps=False)
    assert list(content["services"]) == ["triton-0-0", "triton-0-1", "prometheus", "grafana"]
    ports = [port for each in content["services"].values() for port in each["ports"]]
    assert len(set(ports)) == len(ports)
    limits = [
        each["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        for each in kubernetes.manifests(sliced, servers(sliced), IMAGE, 1)
        if each["kind"] == "Deployment"
    ]
    assert limits == [{"nvidia.com/mig-3g.40gb": "1"}] * 2


def test_a_gpu_without_a_model_is_left_to_others() -> None:
    made = planning.plan(models(model("a", 10), sizes=(1000, 1000)), "dynamic")
    (server,) = servers(made)
    assert server.gpus == tuple(place.gpu for place in made.services[0].places)
    assert len(server.gpus) == 1
    (group,) = given(made, server, made.services[0]).groups
    assert group.gpus == (0,)  # as the server sees it


def test_with_priority_the_rate_limiter_shares_each_gpu() -> None:
    whole = plans()[0]
    (server,) = servers(whole)
    assert server.command(whole)[-3:] == [
        "--rate-limit=execution_count",
        "--rate-limit-resource=gpu:100:0",
        "--rate-limit-resource=gpu:100:1",
    ]
    groups = given(whole, server, whole.service("b")).groups
    assert {(group.resource, group.priority) for group in groups} == {(100, 2)}


def test_the_load_is_offered_to_every_server(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "trtopt").write_text('#!/bin/sh\necho "$@" >> "$LOG"\n[ "$2" != a ]\n')
    (tmp_path / "trtopt").chmod(0o755)
    (tmp_path / "load.sh").write_text(load.script(plan, servers(plan)))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    done = subprocess.run(["sh", "load.sh", "gpu-box", "7"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 1  # as one of them ended
    lines = (tmp_path / "log").read_text().splitlines()
    rates: dict[str, float] = {}
    for line in lines:
        words = line.split()
        rates[words[1]] = rates.get(words[1], 0) + float(words[words.index("--rate") + 1])
        assert "--server grpc://gpu-box:80" in line
        assert "--seconds 7" in line
        assert "--poisson" in line
    assert rates == pytest.approx({each.name: each.rate for each in plan.fleet.demands})


def test_the_lines_of_the_load_parse(plan: Plan) -> None:
    from support import accepted

    for line in re.findall(r"^(trtopt .*) &$", load.script(plan, servers(plan)), re.MULTILINE):
        assert accepted(line.replace("$host", "localhost").replace("$seconds", "60")) == "bench"


def queries() -> list[str]:
    return [query for _, _, queries in dashboard.PANELS for query, _ in queries]


@pytest.mark.parametrize("query", queries())
def test_a_query_of_the_dashboard_is_about_metrics_of_a_real_server(query: str) -> None:
    promql = pytest.importorskip("promql_parser")
    served: dict[str, list[dict[str, str]]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", METRICS.read_text() + OF_GPUS, re.MULTILINE):
        served.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))
    promql.parse(query)
    # Each selector, with the labels that it asks for and those that it groups by.
    selectors = re.findall(r"(nv_\w+)(?:\{([^}]*)\})?", query)
    assert selectors
    for name, matchers in selectors:
        asked = dict(re.findall(r'(\w+)="([^"]*)"', matchers))
        assert any(asked.items() <= labels.items() for labels in served.get(name, [])), name
        for label in re.findall(r"by \((\w+)\)", query):
            assert all(label in labels for labels in served[name])


def test_a_wrong_query_is_found() -> None:
    promql = pytest.importorskip("promql_parser")
    with pytest.raises(ValueError, match=r".+"):
        promql.parse("sum by (model) (rate(nv_inference_count[1m])")


def test_the_dashboard_has_what_grafana_asks_for() -> None:
    content = dashboard.dashboard()
    ids = [panel["id"] for panel in content["panels"]]
    assert len(set(ids)) == len(ids) == len(dashboard.PANELS)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in content["panels"]}
    assert len(places) == len(ids)
    files = dashboard.provisioning()
    (source,) = files["datasources/prometheus.yaml"]["datasources"]
    assert {panel["datasource"]["uid"] for panel in content["panels"]} == {source["uid"]}
