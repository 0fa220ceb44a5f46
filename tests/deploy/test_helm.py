"""The manifests that helm makes of the chart: Kubernetes knows every field, and what names another thing finds it."""

from collections.abc import Mapping
from typing import Any

import kubernetes_validate
import pytest
import yaml

from softspec import __version__
from tests.support.chart import (
    CHART,
    EXAMPLES,
    LEAST,
    NEWEST,
    OFF,
    OLDEST,
    OPTIONAL,
    RELEASE,
    ChartError,
    Manifest,
    container_of,
    only,
    pod_of,
    render,
    run_helm,
)

pytestmark = pytest.mark.slow

FOREIGN = {"keda.sh/v1alpha1": "ScaledObject", "monitoring.coreos.com/v1": "ServiceMonitor"}
"""Kinds that Kubernetes does not know, and whose schemas no package for Python has."""


def test_kubernetes_knows_every_field(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        if manifest["apiVersion"] not in FOREIGN:
            assert kubernetes_validate.validate(manifest, NEWEST, strict=True) == NEWEST


def test_the_oldest_version_that_the_chart_allows_knows_them_too() -> None:
    """All but OCI artefacts as volumes, which are younger."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))

    for manifest in render("claim"):
        kubernetes_validate.validate(manifest, OLDEST, strict=True)

    assert chart["kubeVersion"] == f">={OLDEST}.0-0"


def test_a_misspelt_field_is_noticed() -> None:
    manifest = only("Service", render("claim"))
    manifest["spec"]["selektor"] = {}

    with pytest.raises(kubernetes_validate.ValidationError, match="selektor"):
        kubernetes_validate.validate(manifest, NEWEST, strict=True)


@pytest.mark.parametrize("part", OPTIONAL)
def test_a_part_is_there_only_when_it_is_switched_on(part: str) -> None:
    on, off = (
        {manifest["kind"] for manifest in render("claim", values={**OFF, **values})}
        for values in ({part: {"enabled": True}}, {})
    )

    assert on - off == {OPTIONAL[part]}


@pytest.mark.parametrize("example", ["claim", "oci"])
def test_helm_finds_nothing_to_complain_about(example: str) -> None:
    assert "0 chart(s) failed" in run_helm(
        "lint", CHART, "--strict", "--values", EXAMPLES / f"{example}.yaml"
    )


def test_helm_checks_values_by_the_schema() -> None:
    with pytest.raises(ChartError, match="at '/ensembles': minItems: got 0, want 1"):
        render()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"ensembles": [{"name": "a", "claim": "b"}] * 2},
            "ensembles are named a, a: expected different names",
        ),
        (
            {"serverConfig": {"upstreams": {"large": {}}}},
            "upstreams, but networkPolicy.egress lets nothing out",
        ),
        ({"autoscaling": {"minReplicas": 5}}, "minReplicas is above autoscaling.maxReplicas"),
        ({"rollout": {"maxSurge": 0}}, "nothing could ever be replaced"),
    ],
    ids=["names", "egress", "replicas", "rollout"],
)
def test_what_could_not_work_is_refused_in_one_line(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ChartError, match=message):
        render("claim", values=values)


def test_the_notes_say_who_may_ask_and_what_is_missing() -> None:
    install = ("install", RELEASE, CHART, "--dry-run=client")

    notes = run_helm(*install, values=LEAST).partition("NOTES:")[2]

    assert "softspec-client=true" in notes
    assert "There are no API keys" in notes
    assert "an ensemble whose base lies in the hub does not start" in notes


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))

    assert chart["appVersion"] == __version__
    assert container_of(render("claim"))["image"] == f"softspec:{__version__}"


def test_whatever_selects_pods_selects_those_of_the_deployment(manifests: list[Manifest]) -> None:
    labels = only("Deployment", manifests)["spec"]["template"]["metadata"]["labels"]
    service = only("Service", manifests)
    selectors = {
        "Deployment": only("Deployment", manifests)["spec"]["selector"]["matchLabels"],
        "Service": service["spec"]["selector"],
    } | {
        each["kind"]: each["spec"]["podSelector" if each["kind"] == "NetworkPolicy" else "selector"][
            "matchLabels"
        ]
        for each in manifests
        if each["kind"] in ("PodDisruptionBudget", "NetworkPolicy")
    }

    # No label that a new version changes: a Deployment's can never be changed, and a Service would drop the old pods.
    fixed = {"app.kubernetes.io/name": "softspec", "app.kubernetes.io/instance": RELEASE}
    assert fixed.items() <= labels.items()
    assert all(selector == fixed for selector in selectors.values())
    for monitor in (each["spec"] for each in manifests if each["kind"] == "ServiceMonitor"):
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= ports


def test_volumes_and_mounts_are_the_same(manifests: list[Manifest]) -> None:
    volumes = [volume["name"] for volume in pod_of(manifests)["volumes"]]
    mounts = container_of(manifests)["volumeMounts"]

    assert sorted(volumes) == sorted(mount["name"] for mount in mounts)
    assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
