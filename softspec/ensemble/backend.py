"""What computes: the questions that an `Ensemble` puts to a backend, in token ids.

In: prompts and answers as ids. Out: numbers, in the order of the questions, one at a time. Knows no text.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from softspec.ensemble.results import ScoredChoices
from softspec.maths.answer import TokenUncertainty


@dataclass(frozen=True)
class Asked:
    """A prompt and answers to it; `place` names it in messages."""

    place: str
    prompt_ids: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """The most that a sequence of it has."""
        return len(self.prompt_ids) + max(map(len, self.answers), default=0)


@dataclass(frozen=True)
class Draw:
    """A prompt that is to be answered once, in at most so many tokens; `place` names it in messages."""

    place: str
    prompt_ids: tuple[int, ...]
    seed: int
    max_tokens: int


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; temperature 0 is greedy, top_k 0, top_p 1 and min_p 0 are off."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Drawn:
    """An answer as it was drawn; the tokens include the one that ended it, if one did."""

    text: str
    tokens: tuple[TokenUncertainty, ...]
    finish_reason: Literal["stop", "length"]


Traces = list[list[TokenUncertainty]]
"""For each answer its tokens with the numbers that they would have had if they had been drawn."""


class Backend(Protocol):
    """The two ways of computing the same numbers."""

    def choices(self, asked: Iterable[Asked]) -> Iterator[ScoredChoices]:
        """Log-probabilities of whole answers, in the order of the prompts; what is asked is read as it goes."""

    def traces(self, asked: Iterable[Asked]) -> Iterator[Traces]:
        """Every token of every answer with its uncertainty, in the order of the prompts."""

    def draw(self, draws: Sequence[Draw], sampling: Sampling) -> Iterator[tuple[int, Drawn]]:
        """An answer to every prompt, with the prompt's number; in the order in which they are complete."""

    def close(self) -> None:
        """Free what computes; nothing can be asked after that."""
