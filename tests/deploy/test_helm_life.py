"""How a pod starts, is watched, stops and is replaced."""

import pytest

from tests.support.chart import Manifest, container_of, only, pod_of, render
from tests.support.documents import read

pytestmark = pytest.mark.slow


def test_the_grace_period_is_longer_than_the_pause_and_the_drain(manifests: list[Manifest]) -> None:
    container = container_of(manifests)
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    (drain,) = (
        int(each.partition("=")[2]) for each in container["args"] if each.startswith("--drain-timeout")
    )

    assert pod_of(manifests)["terminationGracePeriodSeconds"] == pause + drain + 15
    assert "15 seconds more" in " ".join(read("deploy/README.md").split())


def test_probes_ask_a_port_that_the_container_has(manifests: list[Manifest]) -> None:
    container = container_of(manifests)
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    asked = {name: probe["path"] for name, probe in probes.items()}
    flags_of_ports = {
        f"--{name}port={port}" for name, port in (("", ports["http"]), ("ops-", ports.get("ops")))
    }

    assert asked == {"startup": "/health", "readiness": "/ready", "liveness": "/health"}
    assert {probe["port"] for probe in probes.values()} == {"ops" if "ops" in ports else "http"}
    assert flags_of_ports & set(container["args"]) == flags_of_ports - {"--ops-port=None"}


def test_a_start_may_take_as_long_as_the_values_say() -> None:
    manifests = render("claim", values={"startSeconds": 1234})
    probe = container_of(manifests)["startupProbe"]

    assert 1234 <= probe["periodSeconds"] * probe["failureThreshold"] < 1250
    assert only("Deployment", manifests)["spec"]["progressDeadlineSeconds"] > 1250


def test_a_rollout_takes_no_engine_away_before_its_successor_is_ready() -> None:
    rolling = only("Deployment", render("claim"))["spec"]["strategy"]["rollingUpdate"]

    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_budget_lets_nodes_be_emptied(manifests: list[Manifest]) -> None:
    """One pod at a time, however few there are; and one that never got ready at any time."""
    for budget in (each["spec"] for each in manifests if each["kind"] == "PodDisruptionBudget"):
        assert budget["maxUnavailable"] >= 1
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_another_configuration_is_another_pod() -> None:
    def annotations(threshold: float) -> dict[str, str]:
        policy = {"action": "abstain", "threshold": threshold}
        manifests = render("claim", values={"serverConfig": {"policy": policy}})
        return only("Deployment", manifests)["spec"]["template"]["metadata"]["annotations"]

    assert annotations(0.1) == annotations(0.1) != annotations(0.2)
