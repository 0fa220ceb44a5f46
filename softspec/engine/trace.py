"""What the engine measured for one HTTP request, kept beside vLLM's own outputs.

The HTTP layer sets `current_trace` before it calls vLLM's handler; `EnsembleClient.generate` fills it token by token.
Knows neither HTTP nor vLLM.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field

from softspec.artefact.manifest import WeightsRule
from softspec.maths.answer import TokenUncertainty


@dataclass
class ChoiceTrace:
    """The tokens of one choice so far; `seed` replays exactly this choice.

    All but the tokens is known once the members that answer are chosen, which is before the first token.
    """

    log_weights: tuple[float, ...] = ()
    weights_rule: WeightsRule = "prefix_posterior"
    seed: int = 0
    tokens: list[TokenUncertainty] = field(default_factory=list)


@dataclass
class RequestTrace:
    """All choices of one HTTP request, by OpenAI choice index (prompt index * n + sample index)."""

    choices: dict[int, ChoiceTrace] = field(default_factory=dict)


current_trace: ContextVar[RequestTrace | None] = ContextVar("softspec_trace", default=None)
