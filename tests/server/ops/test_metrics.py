"""The table of metrics is what `/metrics` shows."""

from prometheus_client import CollectorRegistry, generate_latest

from softspec.errors import LockstepError, MixingError
from softspec.maths.answer import summarise
from softspec.server.ops.metrics import METRICS, Metrics
from softspec.server.policy.policy import Decision
from tests.support.fake_engine import TORN, UNIFORM


def test_every_metric_of_the_table_is_exposed_and_nothing_else() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    metrics.of_request(1)(Decision("abstain", "why", 3), summarise(TORN, UNIFORM))
    metrics.first_token(0.2)
    metrics.failed(LockstepError("members drew different tokens"))
    metrics.failed(MixingError("no token is left"))
    metrics.upstream_answered("big", "timeout", 1.5)
    metrics.upstream_answered("big", "open_circuit", None)
    metrics.upstream_circuit("big", True)

    page = generate_latest(registry).decode()
    families = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    exposed = {family for family in families if not family.endswith("_created")}
    assert exposed == {metric.name for metric in METRICS}
    assert 'softspec_requests_total{decision="abstain"} 1.0' in page
    assert 'softspec_choices_total{decision="abstain"} 1.0' in page
    assert "softspec_lockstep_errors_total 1.0" in page
    assert "softspec_mixing_errors_total 1.0" in page
    assert 'softspec_upstream_requests_total{outcome="open_circuit",upstream="big"} 1.0' in page
    assert 'softspec_upstream_seconds_count{upstream="big"} 1.0' in page
    assert 'softspec_upstream_circuit_open{upstream="big"} 1.0' in page


def test_metric_names_end_in_their_unit() -> None:
    """Or, of a state, in what it is when it is 1."""
    units = ("_total", "_nats", "_ratio", "_seconds", "_open")

    assert all(metric.name.startswith("softspec_") and metric.name.endswith(units) for metric in METRICS)
