"""Every metric that softspec adds to vLLM's `/metrics`, in one table.

In: decisions and summaries. Out: Prometheus series. Labels never hold text of a user.
"""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from softspec.errors import EngineError, MixingError
from softspec.maths.answer import AnswerUncertainty
from softspec.server.policy.policy import Decision

_NATS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)


@dataclass(frozen=True)
class Metric:
    """One row of the table; a histogram when it has buckets, else a counter."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS = (
    Metric(
        "softspec_requests_total",
        "Requests that ensembles answered, by what the policy decided: an action if it was taken on any choice.",
        labels=("decision",),
    ),
    Metric(
        "softspec_choices_total",
        "Choices of ensembles' answers by what the policy decided.",
        labels=("decision",),
    ),
    Metric(
        "softspec_decisions_total",
        "Answers to questions of /v1/decisions by what the policy decided.",
        labels=("model", "decision"),
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
        "softspec_time_to_first_token_seconds",
        "From the request to its first token, streamed answers of ensembles.",
        buckets=_SECONDS,
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
)


class Metrics:
    """The series of METRICS, registered once per registry; vLLM serves the default one."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._counters = {
            metric.name: Counter(metric.name, metric.help, metric.labels, registry=registry)
            for metric in METRICS
            if not metric.buckets
        }
        self._histograms = {
            metric.name: Histogram(
                metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry
            )
            for metric in METRICS
            if metric.buckets
        }

    def of_request(self, num_choices: int) -> Callable[[Decision, AnswerUncertainty], None]:
        """What counts the choices of one request, and with the last of them the request."""
        actions: list[str] = []

        def answered(decision: Decision, summary: AnswerUncertainty) -> None:
            self._count_choice(decision, summary)
            actions.append(decision.action)
            if len(actions) == num_choices:
                taken = next((action for action in actions if action != "answer"), "answer")
                self._counters["softspec_requests_total"].labels(decision=taken).inc()

        return answered

    def _count_choice(self, decision: Decision, summary: AnswerUncertainty) -> None:
        self._counters["softspec_choices_total"].labels(decision=decision.action).inc()
        self._histograms["softspec_mutual_information_nats"].observe(summary.mutual_information)
        self._histograms["softspec_epistemic_nats"].observe(summary.epistemic)
        self._histograms["softspec_disagreement_ratio"].observe(summary.disagreement)

    def decided(self, model: str, decision: Decision) -> None:
        """Count an answer to a question with known options."""
        self._counters["softspec_decisions_total"].labels(model=model, decision=decision.action).inc()

    def first_token(self, seconds: float) -> None:
        """Count a streamed answer that began so many seconds after its request."""
        self._histograms["softspec_time_to_first_token_seconds"].observe(seconds)

    def failed(self, reason: EngineError) -> None:
        """Count a request that had to be ended, for a fault that is ours."""
        kind = "mixing" if isinstance(reason, MixingError) else "lockstep"
        self._counters[f"softspec_{kind}_errors_total"].inc()

    def group_preemption(self) -> None:
        """Count a group whose rows will be computed again, for want of KV blocks."""
        self._counters["softspec_group_preemptions_total"].inc()
