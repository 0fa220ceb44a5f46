"""A metric of an answer that grows: what a policy compares after every token, and what a threshold is calibrated on.

In: the tokens of an answer in their turn. Out: the metric of the answer that ends there. Plain Python; knows nothing of
engines, HTTP or thresholds.
"""

import math
from dataclasses import replace
from typing import Literal

from softspec.maths.answer import TokenUncertainty, summarise


class RunningMetric:
    """One metric of a growing answer, O(K) per token; after each it is that field of `summarise`, to the last digit.

    To the last digit, because a caller may give a number that we reported as a threshold.
    """

    def __init__(
        self, metric: str, log_weights: tuple[float, ...], weights_rule: Literal["prefix_posterior", "fixed"]
    ) -> None:
        self._metric = metric
        self._log_weights = log_weights
        self._weights_rule = weights_rule
        self._num_tokens = 0
        self._largest = -math.inf
        self._total = ExactSum()
        self._member_log_probs = [ExactSum() for _ in log_weights]

    def add(self, token: TokenUncertainty) -> float:
        """The metric of the answer that ends with this token."""
        self._num_tokens += 1
        if self._metric == "mutual_information":
            return self._information(token)
        number: float = getattr(token, self._metric.removeprefix("max_"))
        if self._metric.startswith("max_"):
            self._largest = max(self._largest, number)
            return self._largest
        return self._total.add(number) / self._num_tokens

    def _information(self, token: TokenUncertainty) -> float:
        if self._weights_rule == "fixed":
            return self._total.add(summarise([token], self._log_weights, "fixed").mutual_information)
        pairs = zip(self._member_log_probs, token.member_log_probs, strict=True)
        # The weights after the answer depend on the members' sums alone, so one token stands for all.
        whole = replace(token, member_log_probs=tuple(total.add(log_prob) for total, log_prob in pairs))
        return summarise([whole], self._log_weights, "prefix_posterior").mutual_information


class ExactSum:
    """What `math.fsum` would give, number by number: the parts that rounding cuts off are kept (Shewchuk 1997)."""

    def __init__(self) -> None:
        self._parts: list[float] = []
        self._infinite = 0.0

    def add(self, number: float) -> float:
        """The sum with this number."""
        if math.isinf(number):
            self._infinite += number
        else:
            parts = []
            for part in self._parts:
                total = number + part
                larger, smaller = (number, part) if abs(number) > abs(part) else (part, number)
                if rest := smaller - (total - larger):
                    parts.append(rest)
                number = total
            self._parts = [*parts, number]
        return self._infinite or math.fsum(self._parts)
