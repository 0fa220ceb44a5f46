"""An ensemble to be asked from Python: lists of texts in, typed answers with their uncertainty out.

In: prompts, answers and questions as texts. Out: the records of `results.py`, in the order of what was asked. Knows
texts and what is asked; how it is computed, its backend knows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from softspec.artefact.manifest import Manifest
from softspec.ensemble.backend import Asked, Backend, Draw, Drawn
from softspec.ensemble.decisions import AnyQuestion, decided, put
from softspec.ensemble.progress import watched
from softspec.ensemble.results import Answer, Decided, ScoredAnswer, ScoredChoices
from softspec.ensemble.sampling import checked_sampling, seed_of
from softspec.ensemble.texts import Prompt, Texts
from softspec.errors import ConfigError, DataError
from softspec.maths.answer import TokenUncertainty, summarise

Detail = Literal["summary", "tokens"]


class Ensemble:
    """K members that answer as one; `softspec.load` gives one. A context manager: it frees its backend at the end."""

    def __init__(self, manifest: Manifest, texts: Texts, backend: Backend) -> None:
        self.manifest = manifest
        self.texts = texts
        self._backend: Backend | None = backend

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
        if self._backend is not None:
            backend, self._backend = self._backend, None
            backend.close()

    @property
    def backend(self) -> Backend:
        """What computes.

        Raises:
            ConfigError: the ensemble was closed.
        """
        if self._backend is None:
            raise ConfigError(f"ensemble '{self.manifest.name}' is closed: load it again")
        return self._backend

    @property
    def num_members(self) -> int:
        """How many members there are, K."""
        return self.manifest.num_members

    @property
    def log_weights(self) -> tuple[float, ...]:
        """The members' prior weights, (K,), natural logs, normalised."""
        return self.manifest.log_weights

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        n: int = 1,
        detail: Detail = "summary",
        progress: bool = True,
    ) -> list[Answer]:
        """Answer every prompt from the mixture.

        Args:
            prompts: texts, used as they are, or lists of messages.
            max_tokens: of an answer, the one that ends it included; fewer where the context ends before.
            temperature: 0 is greedy, 1 draws from the mixture itself.
            top_p, top_k, min_p: keep only likely tokens; 1, 0 and 0 are off.
            seed: answer number j has the seed `seed` + j, and the same noise as a request with that seed to a server;
                None draws seeds.
            stop: texts before which an answer ends.
            n: answers to each prompt.
            detail: `tokens` adds the numbers of every token.
        Returns:
            n answers to the first prompt, then to the second, and so on.
        Raises:
            ConfigError: a setting means nothing.
            DataError: a prompt cannot be rendered, or is too long; the message has its number.
        """
        sampling = checked_sampling(max_tokens, temperature, top_p, top_k, min_p, seed, stop, n)
        draws = []
        for number, prompt in enumerate(prompts):
            place = f"prompt {number}"
            ids = self.texts.prompt_ids(prompt, place)
            left = self.texts.room_behind(ids, max_tokens)
            seeds = [seed_of(seed, number * n + sample) for sample in range(n)]
            draws += [Draw(place, ids, own, left) for own in seeds]
        self.texts.tell_notes()
        drawn = dict(watched(self.backend.draw(draws, sampling), progress, "answering", "answer", len(draws)))
        return [self._answer(number // n, draw, drawn[number], detail) for number, draw in enumerate(draws)]

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

    def decide(
        self,
        questions: Sequence[AnyQuestion],
        *,
        input: str | Sequence[Mapping[str, Any]] = "",
        list_options: bool = True,
        length_normalise: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> list[Decided]:
        """Decide between known options, by their exact probabilities: the questions of `/v1/decisions`.

        Args:
            questions: of type `predicate`, `choice` or `score`, as there; each may have an `input` of its own.
            input: what the questions that have none are about: text, or messages.
            list_options: whether the prompt names the options.
            length_normalise: compare options by the mean log-probability of a token.
            chat_template_kwargs: arguments of the chat template.
        Raises:
            DataError: a question is not as there, or too long; the message has its number.
        """
        shared = {
            "input": input if isinstance(input, str) else list(input),
            "list_options": list_options,
            "length_normalise": length_normalise,
            "chat_template_kwargs": chat_template_kwargs,
        }
        asked = [put(question, number, self.texts, shared) for number, question in enumerate(questions)]
        choices = self.backend.choices(each.asked for each in asked)
        scored = watched(choices, progress, "deciding", "question", len(asked))
        return [
            decided(each, found, self.manifest, length_normalise)
            for each, found in zip(asked, scored, strict=True)
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

    def _answer(self, prompt: int, draw: Draw, drawn: Drawn, detail: Detail) -> Answer:
        return Answer(
            prompt=prompt,
            text=drawn.text,
            finish_reason=drawn.finish_reason,
            seed=draw.seed,
            token_ids=tuple(token.token_id for token in drawn.tokens),
            uncertainty=summarise(drawn.tokens, self.log_weights, self.manifest.weights_rule),
            tokens=drawn.tokens if detail == "tokens" else (),
        )

    def _scored(self, text: str, tokens: Sequence[TokenUncertainty], detail: Detail) -> ScoredAnswer:
        return ScoredAnswer(
            text=text,
            token_ids=tuple(token.token_id for token in tokens),
            uncertainty=summarise(tokens, self.log_weights, self.manifest.weights_rule),
            tokens=tuple(tokens) if detail == "tokens" else (),
        )
