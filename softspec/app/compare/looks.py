"""A look at a server's metrics: what one model did since its process began, or between two looks.

In: the text of `/metrics`. Out: counts and histograms of a model, which can be subtracted. Knows names of metrics.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from softspec.errors import ConfigError

REQUESTS = "softspec_requests_total"
INFORMATION = "softspec_mutual_information_nats"
TIMES = {"first token": "softspec_time_to_first_token_seconds", "whole request": "softspec_request_seconds"}
"""What is timed -> its histogram; a server may lack one."""
_SERIES = "softspec_"


@dataclass(frozen=True)
class Histogram:
    """Counts by bucket: so many up to each bound, the last of which is infinite, and above the one before."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @property
    def count(self) -> float:
        """How many there are."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """The mean; None of nothing."""
        return self.total / self.count if self.count else None

    def since(self, before: "Histogram") -> "Histogram":
        """What came after an earlier look at the same buckets."""
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return Histogram(self.bounds, counts, self.total - before.total)


@dataclass(frozen=True)
class Look:
    """What a model did: requests by decision, and its histograms by name, without those that it has not."""

    decisions: dict[str, float]
    histograms: dict[str, Histogram]

    @property
    def num_requests(self) -> float:
        """Requests that were answered, whatever was decided."""
        return sum(self.decisions.values())

    def since(self, before: "Look") -> "Look":
        """What it did after an earlier look.

        Raises:
            ConfigError: it has done less than then, so the server was started anew between.
        """
        names = {*before.decisions, *self.decisions}
        decisions = {name: self.decisions.get(name, 0) - before.decisions.get(name, 0) for name in names}
        histograms = dict(self.histograms)
        for name, then in before.histograms.items():
            now = histograms.get(name)
            if now is None or now.bounds != then.bounds or now.count < then.count:
                raise _anew()
            histograms[name] = now.since(then)
        if any(count < 0 for count in decisions.values()):
            raise _anew()
        return Look(decisions, histograms)


def _anew() -> ConfigError:
    return ConfigError("the server was started anew between the two looks: compare once more")


def looks(text: str, models: Iterable[str]) -> list[Look]:
    """What the metrics say of each model.

    Raises:
        ConfigError: the text is no page of metrics, or there is nothing of a model in it.
    """
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except (ValueError, IndexError, KeyError) as error:
        raise ConfigError(
            "/metrics cannot be read: expected Prometheus' text; is that a softspec server?"
        ) from error
    ours = [sample for sample in samples if sample.name.startswith(_SERIES) and "model" in sample.labels]
    known = {sample.labels["model"] for sample in ours}
    found = []
    for model in models:
        if model not in known:
            raise ConfigError(
                f"found no metric of '{model}': expected one of {', '.join(sorted(known)) or 'those that are served'} "
                "(an alias counts as what it stands for)"
            )
        found.append(_look([sample for sample in ours if sample.labels["model"] == model]))
    return found


def _look(samples: Sequence[Sample]) -> Look:
    decisions = {each.labels["decision"]: each.value for each in samples if each.name == REQUESTS}
    histograms = {
        name: found for name in (INFORMATION, *TIMES.values()) if (found := _histogram(name, samples))
    }
    return Look(decisions, histograms)


def _histogram(name: str, samples: Sequence[Sample]) -> Histogram | None:
    buckets = sorted(
        (float(each.labels["le"]), each.value) for each in samples if each.name == f"{name}_bucket"
    )
    if not buckets:
        return None
    below = [count for _, count in buckets]
    counts = tuple(now - then for now, then in zip(below, [0.0, *below[:-1]], strict=True))
    total = next(each.value for each in samples if each.name == f"{name}_sum")
    return Histogram(tuple(bound for bound, _ in buckets), counts, total)
