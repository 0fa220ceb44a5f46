"""What one HTTP request cost the engine, counted where the engine's outputs arrive.

In and out: tokens and moments. Whoever calls vLLM's handlers sets `current_meter`; the engine's front end counts on it,
whatever is asked of whatever model and however it is answered. Knows neither HTTP nor vLLM.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass
class Meter:
    """Tokens of all prompts and all choices so far, and when the first and the last of them came.

    Prompts count once for all choices that are drawn from them. Moments are seconds of `time.monotonic`.
    `on_first_token` is called with the moment of the first.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_at: float | None = None
    last_token_at: float | None = None
    on_first_token: Callable[[float], None] | None = None

    def count(self, num_tokens: int, now: float) -> None:
        """Add tokens that were drawn."""
        if self.first_token_at is None:
            self.first_token_at = now
            if self.on_first_token is not None:
                self.on_first_token(now)
        self.last_token_at = now
        self.completion_tokens += num_tokens


current_meter: ContextVar[Meter | None] = ContextVar("softspec_meter", default=None)
