"""What an ensemble says, as plain records: drawn answers, scored answers and choices, decisions.

In: numbers that a backend measured. Out: frozen dataclasses in nats. Knows no backend.
"""

from dataclasses import dataclass
from typing import Literal

from softspec.maths.answer import AnswerUncertainty, TokenUncertainty
from softspec.maths.options import OptionsUncertainty


@dataclass(frozen=True)
class Answer:
    """A drawn answer to prompt number `prompt`, counted from 0.

    `finish_reason`: `stop` where the model ended its turn or said a stop string, which is not in `text`; `length` where
    the tokens ran out. `seed` replays it. `tokens` are there with `detail="tokens"`.
    """

    prompt: int
    text: str
    finish_reason: Literal["stop", "length"]
    seed: int
    token_ids: tuple[int, ...]
    uncertainty: AnswerUncertainty
    tokens: tuple[TokenUncertainty, ...] = ()


@dataclass(frozen=True)
class ScoredAnswer:
    """What the ensemble thinks of a given answer, the token that ends its turn included.

    `tokens` are there with `detail="tokens"`.
    """

    text: str
    token_ids: tuple[int, ...]
    uncertainty: AnswerUncertainty
    tokens: tuple[TokenUncertainty, ...] = ()


@dataclass(frozen=True)
class ScoredChoices:
    """Log-probabilities of the C choices of one prompt as whole answers, nats.

    `log_probs` (C,) under the mixture that is served, `member_log_probs` (K, C) under each member, `num_tokens` (C,).
    """

    log_probs: tuple[float, ...]
    member_log_probs: tuple[tuple[float, ...], ...]
    num_tokens: tuple[int, ...]


@dataclass(frozen=True)
class Decided:
    """An answer to a question with known options.

    `probability` is that of yes (a predicate); `choice` the likeliest value, which `confidence` is the probability of;
    `score` the expected level, counted from 0. What a question of this type does not have is None. `uncertainty` has
    the probabilities of `options`, in the order of the question, and of each member.
    """

    name: str | None
    type: Literal["predicate", "choice", "score"]
    options: tuple[str | bool, ...]
    uncertainty: OptionsUncertainty
    probability: float | None = None
    choice: str | bool | None = None
    score: float | None = None
    confidence: float | None = None
