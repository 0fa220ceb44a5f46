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

    page = generate_latest(registry).decode()
    families = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    exposed = {family for family in families if not family.endswith("_created")}
    assert exposed == {metric.name for metric in METRICS}
    assert 'softspec_requests_total{decision="abstain"} 1.0' in page
    assert 'softspec_choices_total{decision="abstain"} 1.0' in page
    assert "softspec_lockstep_errors_total 1.0" in page
    assert "softspec_mixing_errors_total 1.0" in page


def test_metric_names_end_in_their_unit() -> None:
    units = ("_total", "_nats", "_ratio", "_seconds")

    assert all(metric.name.startswith("softspec_") and metric.name.endswith(units) for metric in METRICS)
