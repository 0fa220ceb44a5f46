"""What a load is: how many requests, how fast, of which size.

In: flags. Out: a frozen `LoadSettings`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from softspec.app.bench.core.flags import WholeNumber
from softspec.errors import ConfigError

_DEFAULT_REQUESTS = 100


@dataclass(frozen=True)
class LoadSettings:
    """Everything that can be chosen about a load."""

    concurrency: Annotated[WholeNumber | None, Parameter(metavar="USERS")] = None
    """so many users, each asking again when answered (default: 8 without --rate)"""
    rate: Annotated[float | None, Parameter(metavar="PER_SECOND")] = None
    """requests a second, whether or not earlier ones are answered"""
    requests: Annotated[WholeNumber | None, Parameter(metavar="N")] = None
    """how many are sent (default: 100)"""
    duration: Annotated[float | None, Parameter(metavar="SECONDS")] = None
    """seconds in which they are sent, instead of --requests; with --rate"""
    prompt_words: Annotated[WholeNumber, Parameter(metavar="WORDS")] = 200
    """made-up words of a prompt"""
    prompts: Annotated[Path | None, Parameter(metavar="FILE.jsonl")] = None
    """rows with 'prompt' or 'messages' instead of made-up words"""
    output_tokens: Annotated[WholeNumber, Parameter(metavar="TOKENS")] = 128
    """most tokens of an answer"""
    ignore_eos: bool = False
    """let every answer have as many"""
    seed: WholeNumber = 0
    """of the made-up words"""

    def __post_init__(self) -> None:
        for name in ("concurrency", "rate", "requests", "duration", "prompt_words", "output_tokens"):
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{flag} is {value}: expected more than 0")
        if self.duration is not None and self.rate is None:
            raise ConfigError("--duration is for --rate: users who ask again and again are sent --requests")
        if self.duration is not None and self.requests is not None:
            raise ConfigError(
                f"found --duration {self.duration} and --requests {self.requests}: give one of them"
            )

    @property
    def users(self) -> int | None:
        """Requests at once at most; None is no limit."""
        return 8 if self.concurrency is None and self.rate is None else self.concurrency

    @property
    def count(self) -> int:
        """Requests in all."""
        if self.duration is not None and self.rate is not None:
            return max(math.ceil(self.rate * self.duration), 1)
        return self.requests or _DEFAULT_REQUESTS
