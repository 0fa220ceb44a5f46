"""How many engines run, and on what."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.support.chart import NAMESPACE, NEWEST, Manifest, container_of, only, render

pytestmark = pytest.mark.slow


def test_an_engine_has_one_gpu_and_a_cpu_engine_none() -> None:
    limits = [container_of(render(*case))["resources"]["limits"] for case in (("claim",), ("claim", "cpu"))]

    assert limits == [{"memory": "32Gi", "nvidia.com/gpu": 1}, {"memory": "16Gi"}]


def scaled(**values: Any) -> tuple[Manifest, Manifest]:
    """The Deployment, and what scales it."""
    manifests = render("claim", values={"autoscaling": {"enabled": True, **values}})
    return only("Deployment", manifests), only("ScaledObject", manifests)


def test_where_keda_counts_nobody_else_does() -> None:
    deployment, scaler = scaled()

    assert "replicas" not in deployment["spec"]
    assert only("Deployment", render("claim"))["spec"]["replicas"] == 2
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }


def test_scaling_looks_at_the_queue_of_vllm_in_the_pods_of_this_release() -> None:
    _, scaler = scaled(waitingRows=12)
    (trigger,) = scaler["spec"]["triggers"]
    query = re.fullmatch(r'sum\(([\w:]+){namespace="(.*)",pod=~"(.*)"}\)', trigger["metadata"]["query"])
    vllm = find_spec("vllm")
    assert query
    assert vllm
    assert vllm.origin
    metrics = (Path(vllm.origin).parent / "v1" / "metrics" / "loggers.py").read_text(encoding="utf-8")

    metric, namespace, pod = query.groups()

    assert f'name="{metric}"' in metrics
    assert namespace == NAMESPACE
    assert re.fullmatch(pod, "my-softspec-7d9f8c5b6d-x2x4z")
    assert not re.fullmatch(pod, "my-softspec-cpu-7d9f8c5b6d-x2x4z")
    assert trigger["metadata"]["threshold"] == "12"


def test_a_trigger_says_everything_as_text() -> None:
    """KEDA refuses numbers and booleans there."""
    _, scaler = scaled()

    assert {type(value) for value in scaler["spec"]["triggers"][0]["metadata"].values()} == {str}


def test_the_autoscaler_that_keda_makes_is_one_of_kubernetes() -> None:
    _, scaler = scaled(scaleUpSeconds=240)
    spec = scaler["spec"]

    autoscaler: Manifest = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "keda-hpa-my"},
        "spec": {
            "scaleTargetRef": spec["scaleTargetRef"],
            "minReplicas": spec["minReplicaCount"],
            "maxReplicas": spec["maxReplicaCount"],
            **spec["advanced"]["horizontalPodAutoscalerConfig"],
        },
    }

    kubernetes_validate.validate(autoscaler, NEWEST, strict=True)
    assert autoscaler["spec"]["behavior"]["scaleUp"]["policies"] == [
        {"type": "Pods", "value": 1, "periodSeconds": 240}
    ]
