"""The server's environment variables, readiness and metrics table."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from softspec.errors import ConfigError
from softspec.maths.answer import summarise
from softspec.server.ops.metrics import METRICS, Metrics
from softspec.server.ops.readiness import Readiness
from softspec.server.ops.settings import Settings
from softspec.server.policy.policy import Decision, Policy
from tests.support.fake_engine import TORN, UNIFORM


def test_settings_survive_the_environment() -> None:
    settings = Settings((Path("/models/a"), Path("/models/b")), Policy("abstain", "epistemic", 0.1))

    assert Settings.from_environment(settings.to_environment()) == settings


def test_default_policy_answers_everything() -> None:
    settings = Settings.from_environment({"SOFTSPEC_ENSEMBLE": "/models/a"})

    assert settings.policy == Policy("answer")


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({}, "SOFTSPEC_ENSEMBLE is not set"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_THRESHOLD": "high"}, "expected a number"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_ACTION": "abstain"}, "needs a threshold"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_ACTION": "route"}, "no upstream"),
    ],
)
def test_wrong_settings_stop_the_server_at_start(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Settings.from_environment(environment)


def test_server_is_ready_once_every_ensemble_has_answered_its_canary() -> None:
    asked: list[str] = []

    async def canary(name: str) -> None:
        asked.append(name)

    async def scenario() -> tuple[str | None, str | None]:
        readiness = Readiness(["a", "b"], canary, obstacle=lambda: None)
        before = readiness.problem()
        await asyncio.sleep(0)
        return before, readiness.problem()

    before, after = asyncio.run(scenario())

    assert before == "the canary step of the ensembles has not finished"
    assert after is None
    assert asked == ["a", "b"]


def test_failed_canary_is_reported_and_tried_again() -> None:
    outcomes = iter([RuntimeError("engine is dead"), None])

    async def canary(_name: str) -> None:
        if (error := next(outcomes)) is not None:
            raise error

    async def scenario() -> tuple[str | None, str | None]:
        readiness = Readiness(["a"], canary, obstacle=lambda: None)
        readiness.begin()
        await asyncio.sleep(0)
        failed = readiness.problem()
        await asyncio.sleep(0)
        return failed, readiness.problem()

    assert asyncio.run(scenario()) == ("the canary step failed: engine is dead", None)


def test_draining_server_is_not_ready() -> None:
    async def canary(_name: str) -> None:
        return None

    readiness = Readiness(["a"], canary, obstacle=lambda: "the server is shutting down")

    assert readiness.problem() == "the server is shutting down"


def test_every_metric_of_the_table_is_exposed_and_nothing_else() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    metrics.answered(Decision("abstain", "why"), summarise(TORN, UNIFORM))
    metrics.first_token(0.2)
    metrics.lockstep_error()

    page = generate_latest(registry).decode()
    families = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    exposed = {family for family in families if not family.endswith("_created")}
    assert exposed == {metric.name for metric in METRICS}
    assert 'softspec_requests_total{decision="abstain"} 1.0' in page


def test_metric_names_end_in_their_unit() -> None:
    units = ("_total", "_nats", "_ratio", "_seconds")

    assert all(metric.name.startswith("softspec_") and metric.name.endswith(units) for metric in METRICS)
