"""The examples for KServe and llm-d: they are about the pods that the chart makes, and name what exists."""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.chart import (
    CHART,
    NEWEST,
    PLACE,
    Manifest,
    container_of,
    only,
    pod_of,
    render,
)
from tests.support.documents import read

pytestmark = pytest.mark.slow

ROOM = CHART.parents[1] / "kserve"
KSERVES = {"minReplicas", "maxReplicas", "autoScaling", "deploymentStrategy"}
"""Fields of the predictor that are not a pod's."""


def load(name: str) -> Any:
    return yaml.safe_load((ROOM / name).read_text(encoding="utf-8"))


@pytest.fixture
def predictor() -> dict[str, Any]:
    return load("inferenceservice.yaml")["spec"]["predictor"]


@pytest.fixture
def chart() -> list[Manifest]:
    return render("claim", values={"opsPort": 0})


@cache
def fields_of(kind: str) -> dict[str, str]:
    """JSON name -> type of the fields of one of KServe's classes, read and not imported; none of other people's."""
    file = (
        PLACE
        / "kserve"
        / "models"
        / f"{re.sub(r'(?<=[a-z])(?=[A-Z])|(?<=1)(?=[A-Z])', '_', kind).lower()}.py"
    )
    if not file.exists():
        return {}
    (body,) = (
        node.body
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    types, names = (
        next(
            ast.literal_eval(node.value)
            for node in body
            if isinstance(node, ast.Assign) and name in ast.unparse(node)
        )
        for name in ("openapi_types =", "attribute_map =")
    )
    return {json_name: types[name] for name, json_name in names.items()}


def unknown_fields(value: Any, kind: str) -> list[str]:
    """Fields that KServe's classes do not have, below a value of one of them."""
    if inner := re.fullmatch(r"list\[(\w+)\]", kind):
        return [name for each in value for name in unknown_fields(each, inner[1])]
    if not (fields := fields_of(kind)) or not isinstance(value, dict):
        return []
    return [name for name in value if name not in fields] + [
        found for name in value if name in fields for found in unknown_fields(value[name], fields[name])
    ]


def test_kserve_has_every_field_that_is_its_own() -> None:
    service = load("inferenceservice.yaml")

    assert unknown_fields(service, "V1beta1InferenceService") == []
    assert fields_of("V1beta1PredictorSpec").keys() >= KSERVES


def test_a_misspelt_field_of_kserve_is_noticed() -> None:
    service = load("inferenceservice.yaml")
    service["spec"]["predictor"]["autoScaling"]["metrics"][0]["external"]["metric"]["url"] = (
        "http://prometheus"
    )

    assert unknown_fields(service, "V1beta1InferenceService") == ["url"]


def test_the_rest_of_the_predictor_is_a_pod_of_kubernetes(predictor: dict[str, Any]) -> None:
    spec = {name: value for name, value in predictor.items() if name not in KSERVES}

    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "spec": spec}, NEWEST, strict=True)


def test_the_pod_of_kserve_is_that_of_the_chart(predictor: dict[str, Any], chart: list[Manifest]) -> None:
    (container,) = predictor["containers"]
    without_name = {name: value for name, value in container.items() if name != "name"}
    # KServe spreads pods itself and gives them an account.
    pod = {name: value for name, value in pod_of(chart).items() if name in predictor}

    assert without_name == {name: value for name, value in container_of(chart).items() if name != "name"}
    assert {name: predictor[name] for name in pod if name != "containers"} == {
        name: value for name, value in pod.items() if name != "containers"
    }
    assert pod_of(chart).keys() - pod.keys() == {"serviceAccountName", "topologySpreadConstraints"}
    assert predictor["deploymentStrategy"] == only("Deployment", chart)["spec"]["strategy"]


def test_kserve_scales_by_what_the_chart_scales_by(predictor: dict[str, Any]) -> None:
    scaler = only("ScaledObject", render("claim", values={"autoscaling": {"enabled": True}}))["spec"]
    trigger = scaler["triggers"][0]["metadata"]
    (metric,) = predictor["autoScaling"]["metrics"]
    external = metric["external"]

    assert external["metric"]["query"].partition("{")[0] == trigger["query"].partition("{")[0]
    assert external["metric"]["serverAddress"] == trigger["serverAddress"]
    # KServe refuses averageValue: it reads value, and KEDA divides.
    assert external["target"] == {"type": "Value", "value": trigger["threshold"]}
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (
        scaler["minReplicaCount"],
        scaler["maxReplicaCount"],
    )


def test_the_pool_is_the_pods_of_the_chart_at_the_port_of_api_and_metrics() -> None:
    pool = load("inferencepool.yaml")["spec"]
    manifests = render("claim", values=load("llm-d-values.yaml"))
    labels = only("Deployment", manifests)["spec"]["template"]["metadata"]["labels"]

    assert pool["selector"]["matchLabels"].items() <= labels.items()
    assert pool["targetPorts"] == [
        {"number": port["containerPort"]} for port in container_of(manifests)["ports"]
    ]
    assert labels["llm-d.ai/engine-type"] == "vllm"


def test_whoever_has_the_label_gets_the_metrics_of_the_pool() -> None:
    _, metrics = only("NetworkPolicy", render("claim", values=load("llm-d-values.yaml")))["spec"]["ingress"]

    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"softspec-metrics": "true"}}}]
    assert metrics["ports"] == [{"protocol": "TCP", "port": "http"}]


def test_the_metrics_that_llm_d_reads_are_vllms() -> None:
    vllm = find_spec("vllm")
    assert vllm
    assert vllm.origin
    source = (Path(vllm.origin).parent / "v1" / "metrics" / "loggers.py").read_text(encoding="utf-8")

    named = set(re.findall(r"`(vllm:\w+)`", read("deploy/kserve/README.md")))

    assert len(named) == 5
    assert {name for name in named if f'"{name}"' not in source} == set()
