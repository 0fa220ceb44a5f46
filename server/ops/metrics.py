"""Every metric that softspec adds to vLLM's `/metrics`, in one table.

In: decisions and summaries. Out: Prometheus series. Labels never hold text of a user; `model` is a name that is served.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from softspec.artefact.calibration import Calibration, calibration_of
from softspec.errors import EngineError, MixingError
from softspec.maths.answer import AnswerUncertainty
from softspec.server.observe.account import Account
from softspec.server.ops.drift import Drifts
from softspec.server.policy.policy import Action, Decision
from softspec.server.rollout.shadows import ShadowOutcome
from softspec.server.upstream.faults import Outcome

_NATS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
_LONG_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True)
class Metric:
    """One row of the table; a histogram when it has buckets, a gauge when it is a state, else a counter."""

    name: str
    help: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()
    is_state: bool = False

    @property
    def kind(self) -> str:
        """What Prometheus calls it."""
        return "histogram" if self.buckets else "gauge" if self.is_state else "counter"


METRICS = (
    Metric(
        "softspec_requests_total",
        "Requests that ensembles answered, by what the policy decided: an action if it was taken on any choice.",
        labels=("model", "decision"),
    ),
    Metric(
        "softspec_choices_total",
        "Choices of ensembles' answers by what the policy decided.",
        labels=("model", "decision"),
    ),
    Metric(
        "softspec_decisions_total",
        "Answers to questions of /v1/decisions by what the policy decided.",
        labels=("model", "decision"),
    ),
    Metric(
        "softspec_scored_answers_total", "Answers that existed already and were scored, for /v1/uncertainty."
    ),
    Metric(
        "softspec_mutual_information_nats",
        "How far an answer moved the members' weights.",
        buckets=_NATS,
    ),
    Metric("softspec_epistemic_nats", "Mean epistemic uncertainty of an answer's tokens.", buckets=_NATS),
    Metric(
        "softspec_disagreement_ratio",
        "Mean weighted share of members that would have chosen another token.",
        buckets=_SHARES,
    ),
    Metric(
        "softspec_confidence_ratio",
        "Calibrated probability that an answer is right, withheld answers included.",
        labels=("model", "judged"),
        buckets=_CONFIDENCES,
    ),
    Metric(
        "softspec_confidence_drift_ratio",
        "Largest difference between the distribution of the last 1000 confidences and that at calibration, 0 to 1.",
        labels=("model", "judged"),
        is_state=True,
    ),
    Metric(
        "softspec_time_to_first_token_seconds",
        "From the request to its first token, streamed answers of ensembles.",
        buckets=_SECONDS,
    ),
    Metric(
        "softspec_request_seconds",
        "From a request to the end of its answer, of an upstream too; whatever model was asked, errors left out.",
        buckets=_LONG_SECONDS,
    ),
    Metric("softspec_lockstep_errors_total", "Requests ended because their members came apart; must stay 0."),
    Metric(
        "softspec_mixing_errors_total",
        "Requests ended because their members could not be mixed; must stay 0.",
    ),
    Metric(
        "softspec_group_preemptions_total",
        "Answers of ensembles and members that made room in the KV cache, all their rows at once.",
    ),
    Metric(
        "softspec_upstream_requests_total",
        "Requests to an upstream by how they ended, all attempts of one together.",
        labels=("upstream", "outcome"),
    ),
    Metric(
        "softspec_upstream_seconds",
        "From a request to an upstream to the end of its answer, attempts and pauses included.",
        labels=("upstream",),
        buckets=_LONG_SECONDS,
    ),
    Metric(
        "softspec_upstream_circuit_open",
        "Whether an upstream failed so often that it is left alone for a while: 1, or 0.",
        labels=("upstream",),
        is_state=True,
    ),
    Metric(
        "softspec_record_errors_total",
        "Requests that should have been recorded and could not be written.",
    ),
    Metric(
        "softspec_shadow_requests_total",
        "Requests of others that a shadow was asked too: answered, failed, or dropped where too many went on.",
        labels=("model", "of", "outcome"),
    ),
)


CountChoice = Callable[[Decision, AnswerUncertainty, Calibration | None], None]
"""Counts a choice: what was decided, its numbers, and the calibration of the ensemble that gave it."""


class Metrics:
    """The series of METRICS, registered once per registry; vLLM serves the default one."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._counters = {
            metric.name: Counter(metric.name, metric.help, metric.labels, registry=registry)
            for metric in METRICS
            if metric.kind == "counter"
        }
        self._states = {
            metric.name: Gauge(metric.name, metric.help, metric.labels, registry=registry)
            for metric in METRICS
            if metric.kind == "gauge"
        }
        self._histograms = {
            metric.name: Histogram(
                metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry
            )
            for metric in METRICS
            if metric.kind == "histogram"
        }
        self._drifts = Drifts()

    def expect(
        self, models: Iterable[str], ensembles: Iterable[str] = (), upstreams: Iterable[str] = ()
    ) -> None:
        """Show at 0 what may befall these models, become of requests to ensembles and of calls to upstreams.

        So that the first time is a rise, and none at all is a share of 0.
        """
        series: dict[str, Counter | Histogram] = {**self._counters, **self._histograms}
        zeros: dict[tuple[str, ...], list[tuple[str, ...]]] = {
            ("counter", "model"): [(model,) for model in models],
            ("histogram", "model"): [(model,) for model in ensembles],
            ("counter", "model", "decision"): [*product(ensembles, get_args(Action))],
            ("counter", "upstream", "outcome"): [*product(upstreams, get_args(Outcome))],
            ("histogram", "upstream"): [(upstream,) for upstream in upstreams],
        }
        for metric in METRICS:
            for values in zeros.get((metric.kind, *metric.labels), ()):
                series[metric.name].labels(*values)

    def of_request(self, model: str, num_choices: int) -> CountChoice:
        """What counts the choices of one request, and with the last of them the request."""
        actions: list[str] = []

        def answered(decision: Decision, summary: AnswerUncertainty, calibration: Calibration | None) -> None:
            self._count_choice(model, decision, summary)
            if (found := calibration_of(calibration, "answers")) is not None:
                self._confident(model, found, found.confidence(vars(summary)))
            actions.append(decision.action)
            if len(actions) == num_choices:
                taken = next((action for action in actions if action != "answer"), "answer")
                self._counters["softspec_requests_total"].labels(model=model, decision=taken).inc()

        return answered

    def _count_choice(self, model: str, decision: Decision, summary: AnswerUncertainty) -> None:
        self._counters["softspec_choices_total"].labels(model=model, decision=decision.action).inc()
        self._observe("softspec_mutual_information_nats", model, summary.mutual_information)
        self._observe("softspec_epistemic_nats", model, summary.epistemic)
        self._observe("softspec_disagreement_ratio", model, summary.disagreement)

    def _confident(self, model: str, calibration: Calibration, confidence: float) -> None:
        labels = {"model": model, "judged": calibration.judged}
        self._histograms["softspec_confidence_ratio"].labels(**labels).observe(confidence)
        drift = self._drifts.add(model, calibration, confidence)
        if drift is not None:
            self._states["softspec_confidence_drift_ratio"].labels(**labels).set(drift)

    def _observe(self, name: str, model: str, value: float) -> None:
        self._histograms[name].labels(model=model).observe(value)

    def scored(self, model: str, num_answers: int) -> None:
        """Count answers that were scored and not written."""
        self._counters["softspec_scored_answers_total"].labels(model=model).inc(num_answers)

    def decided(
        self,
        model: str,
        decision: Decision,
        calibration: Calibration | None = None,
        confidence: float | None = None,
    ) -> None:
        """Count an answer to a question with known options, and its confidence where the ensemble is calibrated."""
        self._counters["softspec_decisions_total"].labels(model=model, decision=decision.action).inc()
        if calibration is not None and confidence is not None:
            self._confident(model, calibration, confidence)

    def first_token(self, model: str, seconds: float) -> None:
        """Count a streamed answer that began so many seconds after its request."""
        self._observe("softspec_time_to_first_token_seconds", model, seconds)

    def request_ended(self, account: Account) -> None:
        """Time a request that was answered; one that named no model that is served is nobody's."""
        if account.model is not None and account.status == 200 and account.ended_at is not None:
            self._observe("softspec_request_seconds", account.model, account.ended_at - account.began_at)

    def failed(self, model: str, reason: EngineError) -> None:
        """Count a request that had to be ended, for a fault that is ours."""
        kind = "mixing" if isinstance(reason, MixingError) else "lockstep"
        self._counters[f"softspec_{kind}_errors_total"].labels(model=model).inc()

    def group_preemption(self, model: str) -> None:
        """Count a group whose rows will be computed again, for want of KV blocks."""
        self._counters["softspec_group_preemptions_total"].labels(model=model).inc()

    def upstream_answered(self, upstream: str, outcome: Outcome, seconds: float | None) -> None:
        """Count a call to an upstream; `seconds` is None when nothing was sent."""
        self._counters["softspec_upstream_requests_total"].labels(upstream=upstream, outcome=outcome).inc()
        if seconds is not None:
            self._histograms["softspec_upstream_seconds"].labels(upstream=upstream).observe(seconds)

    def upstream_circuit(self, upstream: str, is_open: bool) -> None:
        """Say whether an upstream is left alone."""
        self._states["softspec_upstream_circuit_open"].labels(upstream=upstream).set(is_open)

    def record_failed(self, model: str) -> None:
        """Count a request that could not be recorded."""
        self._counters["softspec_record_errors_total"].labels(model=model).inc()

    def shadow_ended(self, model: str, of: str, outcome: ShadowOutcome, times: int) -> None:
        """Count requests that a shadow was asked too, or would have been; none at all shows the series at 0."""
        self._counters["softspec_shadow_requests_total"].labels(model=model, of=of, outcome=outcome).inc(
            times
        )
