"""What decisions need of the engine, as functions that the plugin puts together.

In and out: token ids and log-probabilities. Knows neither vLLM nor HTTP.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from softspec.artefact.calibration import Calibration
from softspec.artefact.manifest import WeightsRule
from softspec.server.decisions.events import AnswerIds


class Scored(Protocol):
    """What the engine measured of one option."""

    @property
    def log_prob(self) -> float:
        """Under the mixture, nats."""

    @property
    def member_log_probs(self) -> tuple[float, ...]:
        """Under each member, nats."""

    @property
    def num_tokens(self) -> int: ...


class Mixture(Protocol):
    """How the members behind a model's name are mixed at this moment."""

    @property
    def log_weights(self) -> tuple[float, ...]: ...

    @property
    def weights_rule(self) -> WeightsRule: ...

    @property
    def calibration(self) -> Calibration | None: ...


@dataclass(frozen=True)
class DecisionEngine:
    """The engine, as far as decisions need it.

    `mixture_of` gives None for a model without members. `chat_prompt_ids` and `chat_end_id` give the tokens of a
    conversation and the one that ends an answer to it, `answer_ids` those of an answer. `score_options` gives, for
    every prompt, what was measured of each of its options.
    """

    mixture_of: Callable[[str], Mixture | None]
    chat_prompt_ids: Callable[..., Awaitable[list[int]]]
    chat_end_id: Callable[..., Awaitable[int]]
    answer_ids: AnswerIds
    score_options: Callable[..., Awaitable[Sequence[Sequence[Scored]]]]
    max_model_len: int
