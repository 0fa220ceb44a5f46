"""The uncertainty of one drawn token and of a whole answer, as plain numbers: what is sent, judged and stored.

In: the numbers of an answer's tokens. Out: their summary. Plain Python, so that whoever only reads numbers need not
load torch. Knows nothing of engines, HTTP or thresholds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

METRICS = (
    "mutual_information",
    "epistemic",
    "max_epistemic",
    "disagreement",
    "max_disagreement",
    "total_entropy",
    "aleatoric_entropy",
)
"""Fields of `AnswerUncertainty` that a policy may compare with a threshold; higher is less certain."""
DECISION_METRICS = ("epistemic", "disagreement", "total_entropy", "aleatoric_entropy")
"""The same of `OptionsUncertainty`."""
OF_DECISION = {
    "mutual_information": "epistemic",
    "max_epistemic": "epistemic",
    "max_disagreement": "disagreement",
}
"""Metrics of answers in many tokens -> what they are of one decision: the same number, under its own name."""


@dataclass(frozen=True)
class TokenUncertainty:
    """One drawn token, as the raw mixture saw it, before penalties and temperature.

    Nats, except `disagreement`, a share in [0, 1]. `member_choices`: the token that each member found likeliest at this
    step, under the request's constraints; empty where it was not measured.
    """

    token_id: int
    log_prob: float
    total_entropy: float
    aleatoric_entropy: float
    epistemic: float
    disagreement: float
    member_log_probs: tuple[float, ...]
    member_choices: tuple[int, ...] = ()


@dataclass(frozen=True)
class AnswerUncertainty:
    """One answer; nats, except the disagreements and `member_weights`, which are shares.

    Sums: `log_prob`, `member_log_probs`, `mutual_information`. Means over tokens: the entropies,
    `epistemic`, `disagreement`. `member_weights` are those after the last token.
    """

    num_tokens: int
    log_prob: float
    mutual_information: float
    total_entropy: float
    aleatoric_entropy: float
    epistemic: float
    max_epistemic: float
    disagreement: float
    max_disagreement: float
    member_log_probs: tuple[float, ...]
    member_weights: tuple[float, ...]


def summarise(
    tokens: Sequence[TokenUncertainty],
    log_weights: Sequence[float],
    weights_rule: Literal["prefix_posterior", "fixed"] = "prefix_posterior",
) -> AnswerUncertainty:
    """The answer's numbers from its tokens'; without tokens it is certain and the weights are the prior's.

    `mutual_information` is the unbiased single-answer term of I(member; answer) of the model that was served.
    With prefix weights one member stands behind the whole answer: KL(weights after the answer || prior), at
    most log(1/min w). With fixed weights the member is redrawn at every token: the sum of the tokens' terms,
    and `member_weights` stay the prior.
    """
    sums = tuple(math.fsum(token.member_log_probs[k] for token in tokens) for k in range(len(log_weights)))
    if weights_rule == "fixed":
        weights = tuple(math.exp(weight) for weight in log_weights)
        information = math.fsum(
            _information(_posterior(log_weights, t.member_log_probs), log_weights) for t in tokens
        )
    else:
        posterior = _posterior(log_weights, sums)
        weights = tuple(math.exp(weight) for weight in posterior)
        information = _information(posterior, log_weights)
    return AnswerUncertainty(
        num_tokens=len(tokens),
        log_prob=math.fsum(token.log_prob for token in tokens),
        mutual_information=information,
        total_entropy=_mean([token.total_entropy for token in tokens]),
        aleatoric_entropy=_mean([token.aleatoric_entropy for token in tokens]),
        epistemic=_mean([token.epistemic for token in tokens]),
        max_epistemic=max((token.epistemic for token in tokens), default=0.0),
        disagreement=_mean([token.disagreement for token in tokens]),
        max_disagreement=max((token.disagreement for token in tokens), default=0.0),
        member_log_probs=sums,
        member_weights=weights,
    )


def _posterior(log_weights: Sequence[float], loglik: Sequence[float]) -> list[float]:
    joint = [weight + score for weight, score in zip(log_weights, loglik, strict=True)]
    top = max(joint)
    if top == -math.inf:  # an answer that no member can give says nothing about them
        return list(log_weights)
    evidence = top + math.log(math.fsum(math.exp(score - top) for score in joint))
    return [score - evidence for score in joint]


def _information(posterior: Sequence[float], log_weights: Sequence[float]) -> float:
    terms = (
        math.exp(post) * (post - prior)
        for post, prior in zip(posterior, log_weights, strict=True)
        if post > -math.inf
    )
    return max(0.0, math.fsum(terms))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
