"""The table of metrics is what `/metrics` shows."""

from prometheus_client import CollectorRegistry, generate_latest

from softspec.errors import LockstepError, MixingError
from softspec.maths.answer import summarise
from softspec.server.observe.account import Account
from softspec.server.ops.metrics import METRICS, Metrics
from softspec.server.policy.policy import ANSWER, Decision
from tests.support.fake_engine import TORN, UNIFORM


def answered(model: str | None, status: int, seconds: float) -> Account:
    """The account of a request that ended so many seconds after it began."""
    return Account("1", "POST", "/", model=model, status=status, began_at=10.0, ended_at=10.0 + seconds)


def test_every_metric_of_the_table_is_exposed_and_nothing_else() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    metrics.of_request("jurists", 1)(Decision("abstain", "why", 3), summarise(TORN, UNIFORM), None)
    metrics.group_preemption("jurists")
    metrics.first_token("jurists", 0.2)
    metrics.request_ended(answered("jurists", 200, 3.5))
    metrics.scored("jurists", 3)
    metrics.failed("jurists", LockstepError("members drew different tokens"))
    metrics.failed("jurists/member-0", MixingError("no token is left"))
    metrics.upstream_answered("big", "timeout", 1.5)
    metrics.upstream_answered("big", "open_circuit", None)
    metrics.upstream_circuit("big", True)

    page = generate_latest(registry).decode()
    families = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    exposed = {family for family in families if not family.endswith("_created")}
    assert exposed == {metric.name for metric in METRICS}
    assert 'softspec_requests_total{decision="abstain",model="jurists"} 1.0' in page
    assert 'softspec_choices_total{decision="abstain",model="jurists"} 1.0' in page
    assert 'softspec_lockstep_errors_total{model="jurists"} 1.0' in page
    assert 'softspec_mixing_errors_total{model="jurists/member-0"} 1.0' in page
    assert 'softspec_scored_answers_total{model="jurists"} 3.0' in page
    assert 'softspec_request_seconds_sum{model="jurists"} 3.5' in page
    assert 'softspec_upstream_requests_total{outcome="open_circuit",upstream="big"} 1.0' in page
    assert 'softspec_upstream_seconds_count{upstream="big"} 1.0' in page
    assert 'softspec_upstream_circuit_open{upstream="big"} 1.0' in page


def test_metric_names_end_in_their_unit() -> None:
    """Or, of a state, in what it is when it is 1."""
    units = ("_total", "_nats", "_ratio", "_seconds", "_open")

    assert all(metric.name.startswith("softspec_") and metric.name.endswith(units) for metric in METRICS)


def test_every_metric_tells_the_model_or_the_upstream() -> None:
    upstream = "softspec_upstream_"

    for metric in METRICS:
        if metric.name != "softspec_record_errors_total":  # the record is the whole server's
            assert metric.labels[0] == ("upstream" if metric.name.startswith(upstream) else "model")


def test_what_must_stay_at_zero_is_shown_before_it_happens() -> None:
    registry = CollectorRegistry()
    Metrics(registry).expect(["jurists", "jurists/member-0"])

    page = generate_latest(registry).decode()

    for model in ("jurists", "jurists/member-0"):
        assert f'softspec_lockstep_errors_total{{model="{model}"}} 0.0' in page
        assert f'softspec_mixing_errors_total{{model="{model}"}} 0.0' in page
        assert f'softspec_group_preemptions_total{{model="{model}"}} 0.0' in page
    assert "softspec_requests_total{" not in page


def test_what_may_become_of_requests_is_shown_before_the_first() -> None:
    """A rate of what has no series yet is nothing at all, and its first step is lost."""
    registry = CollectorRegistry()
    Metrics(registry).expect(["jurists", "jurists/member-0"], ["jurists"], ["big"])

    page = generate_latest(registry).decode()

    for what in ("requests", "choices", "decisions"):
        for decision in ("answer", "abstain", "route"):
            assert f'softspec_{what}_total{{decision="{decision}",model="jurists"}} 0.0' in page
    for outcome in ("ok", "timeout", "open_circuit"):
        assert f'softspec_upstream_requests_total{{outcome="{outcome}",upstream="big"}} 0.0' in page
    assert 'softspec_upstream_seconds_count{upstream="big"} 0.0' in page
    assert 'softspec_mutual_information_nats_count{model="jurists"} 0.0' in page
    assert 'softspec_mutual_information_nats_count{model="jurists/member-0"}' not in page
    assert 'decision="answer",model="jurists/member-0"' not in page


def test_only_requests_that_a_model_answered_are_timed() -> None:
    """An error is quick, and a request that names no served model is nobody's."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    for account in (answered("jurists", 200, 2.0), answered("jurists", 400, 0.1), answered(None, 200, 0.1)):
        metrics.request_ended(account)

    assert registry.get_sample_value("softspec_request_seconds_count", {"model": "jurists"}) == 1.0
    assert registry.get_sample_value("softspec_request_seconds_sum", {"model": "jurists"}) == 2.0
    assert generate_latest(registry).decode().count("softspec_request_seconds_count{") == 1


def test_models_are_counted_apart() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    for model in ("jurists", "doctors", "doctors"):
        metrics.of_request(model, 1)(ANSWER, summarise(TORN, UNIFORM), None)

    counted = {
        model: registry.get_sample_value("softspec_epistemic_nats_count", {"model": model})
        for model in ("jurists", "doctors")
    }
    assert counted == {"jurists": 1.0, "doctors": 2.0}
