"""What a request asks of the engine, in numbers, before anything of it is computed.

In and out: numbers and names. Whoever has the limits of a server is asked with it. Knows neither HTTP nor vLLM.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """One prompt, and what is to be drawn after it.

    `models` are the names under which the model is served. `num_choices` is 0 where nothing is drawn, and then
    `num_prompt_tokens` has the known tokens too. `grammar_chars` is the length of what an answer must conform to.
    """

    models: tuple[str, ...]
    num_prompt_tokens: int
    num_choices: int = 0
    num_top_logprobs: int = 0
    grammar_chars: int = 0


MayAsk = Callable[[Asked], int | None]
"""Raises to refuse; else the most tokens that each choice may have, None for as many as the model can."""
