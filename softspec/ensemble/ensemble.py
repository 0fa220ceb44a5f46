"""An ensemble to be asked from Python: lists of texts in, typed answers with their uncertainty out.

In: prompts, answers and questions as texts. Out: the records of `results.py`, in the order of what was asked. Knows
texts and what is asked; how it is computed, its backend knows.
"""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Literal

from softspec.artefact.manifest import Manifest
from softspec.ensemble.backend import Asked, Backend
from softspec.ensemble.progress import watched
from softspec.ensemble.results import ScoredAnswer, ScoredChoices
from softspec.ensemble.texts import Prompt, Texts
from softspec.errors import DataError
from softspec.maths.answer import TokenUncertainty, summarise

Detail = Literal["summary", "tokens"]


class Ensemble:
    """K members that answer as one; `softspec.load` gives one. A context manager: it frees its backend at the end."""

    def __init__(self, manifest: Manifest, texts: Texts, backend: Backend) -> None:
        self.manifest = manifest
        self.texts = texts
        self.backend = backend

    def __enter__(self) -> "Ensemble":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free weights, and end what was started; nothing can be asked after that."""
        self.backend.close()

    @property
    def num_members(self) -> int:
        """How many members there are, K."""
        return self.manifest.num_members

    @property
    def log_weights(self) -> tuple[float, ...]:
        """The members' prior weights, (K,), natural logs, normalised."""
        return self.manifest.log_weights

    def score(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[str]],
        *,
        detail: Detail = "summary",
        progress: bool = True,
    ) -> list[list[ScoredAnswer]]:
        """What the ensemble thinks of given answers, with the numbers that they would have had if it had drawn them.

        Args:
            prompts: texts, used as they are, or lists of messages.
            answers: to each prompt, one or more.
            detail: `tokens` adds the numbers of every token.
        Returns:
            for each prompt a list with one record an answer.
        Raises:
            DataError: a prompt or an answer is not as in training, or too long; the message has its number.
        """
        if len(prompts) != len(answers):
            raise DataError(
                f"found {len(prompts)} prompts but {len(answers)} lists of answers: expected one list for each prompt"
            )
        asked = [
            self.texts.asked(prompt, own, f"prompt {number}")
            for number, (prompt, own) in enumerate(zip(prompts, answers, strict=True))
        ]
        self.texts.tell_notes()
        traces = watched(self.backend.traces(asked), progress, "scoring", "prompt", len(asked))
        return [
            [self._scored(text, tokens, detail) for text, tokens in zip(own, found, strict=True)]
            for own, found in zip(answers, traces, strict=True)
        ]

    def scored_choices(
        self, rows: Iterable[tuple[Prompt, Sequence[str]]], *, progress: bool = True
    ) -> Iterator[ScoredChoices]:
        """How likely whole answers are, the token that ends a turn included: the likelihood that training optimises.

        Reads rows as it goes, so memory does not grow with their number.

        Args:
            rows: a prompt and its choices, one or more; any iterable.
        Yields:
            one record a row, in the order of the rows.
        Raises:
            DataError: a row is not as in training, or too long; the message has its number.
        """
        total = len(rows) if isinstance(rows, Sequence) else None
        return watched(self.backend.choices(self._choices(rows)), progress, "scoring", "row", total)

    def _choices(self, rows: Iterable[tuple[Prompt, Sequence[str]]]) -> Iterator[Asked]:
        for number, (prompt, choices) in enumerate(rows):
            if not choices:
                raise DataError(f"row {number}: has no choices: expected at least one")
            yield self.texts.asked(prompt, choices, f"row {number}")
        self.texts.tell_notes()

    def _scored(self, text: str, tokens: Sequence[TokenUncertainty], detail: Detail) -> ScoredAnswer:
        return ScoredAnswer(
            text=text,
            token_ids=tuple(token.token_id for token in tokens),
            uncertainty=summarise(tokens, self.log_weights, self.manifest.weights_rule),
            tokens=tuple(tokens) if detail == "tokens" else (),
        )
