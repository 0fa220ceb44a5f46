"""Questions with known options: the shapes and the words of `/v1/decisions`, and answers to them as records.

In: questions as objects. Out: conversations and options as ids, and `Decided`. One reading of questions for server and
library: `softspec.server.decisions`. Knows no backend.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel

from softspec.artefact.manifest import Manifest
from softspec.ensemble.backend import Asked
from softspec.ensemble.results import Decided, ScoredChoices
from softspec.ensemble.texts import Texts
from softspec.errors import ConfigError, DataError
from softspec.maths.options import OptionsUncertainty, weigh_options
from softspec.server.decisions.events import beginnings, ended, tokens_of
from softspec.server.decisions.prompt import messages_of, options_of
from softspec.server.decisions.request import (
    ChoiceQuestion,
    DecisionRequest,
    PredicateQuestion,
    Question,
    ScoreQuestion,
    read_request,
)

AnyQuestion = Mapping[str, Any] | PredicateQuestion | ChoiceQuestion | ScoreQuestion
"""A question as `/v1/decisions` takes it, which may have an `input` of its own."""


@dataclass(frozen=True)
class Put:
    """A checked question, and what is asked for it."""

    question: Question
    asked: Asked


def put(question: AnyQuestion, number: int, texts: Texts, shared: Mapping[str, Any]) -> Put:
    """A question as it is asked.

    Args:
        shared: the fields of the request beside its questions.
    Raises:
        DataError: it is not as at `/v1/decisions`, options are not to be told apart, or it is too long; the message has
            its number.
    """
    place = f"question {number}"
    try:
        request = _request(question, shared)
        options = options_of(request.questions[0])
        tokens = tokens_of(options, texts.option_ids, "")
        if beginnings(tokens):
            tokens = ended(options, tokens, texts.end_of_turn, "")
        messages = messages_of(request, 0)
    except ConfigError as error:
        raise DataError(f"{place}: {_without_place(str(error))}") from error
    template = {"chat_template_kwargs": request.chat_template_kwargs}
    prompt_ids = texts.prompt_ids(messages, place, **template)
    return Put(request.questions[0], texts.fitting(Asked(place, prompt_ids, tuple(map(tuple, tokens)))))


def _without_place(message: str) -> str:
    """A message about the only question of a request, whose path there says nothing here."""
    return re.sub(r"\bquestions\.0(: |\.)", "", message)


def _request(question: AnyQuestion, shared: Mapping[str, Any]) -> DecisionRequest:
    given = question.model_dump(exclude_none=True) if isinstance(question, BaseModel) else question
    if not isinstance(given, Mapping):
        raise ConfigError(f"is {type(given).__name__}: expected an object as at /v1/decisions")
    own = {name: value for name, value in given.items() if name != "input"}
    return read_request({**shared, "input": given.get("input", shared["input"]), "questions": [own]})


def decided(put: Put, scored: ScoredChoices, manifest: Manifest, length_normalise: bool) -> Decided:
    """What the mixture makes of a question's options.

    Raises:
        DataError: no option can be said at all.
    """
    try:
        weighed = weigh_options(
            torch.tensor(scored.member_log_probs, dtype=torch.float64),
            torch.tensor(manifest.log_weights, dtype=torch.float64),
            mixture_log_probs=torch.tensor(scored.log_probs, dtype=torch.float64)
            if manifest.weights_rule == "fixed"
            else None,
            num_tokens=torch.tensor(scored.num_tokens) if length_normalise else None,
        )
    except ConfigError as error:
        raise DataError(f"{put.asked.place}: {error}") from error
    return _answered(put.question, weighed)


def _answered(question: Question, weighed: OptionsUncertainty) -> Decided:
    probabilities = weighed.probabilities
    confidence = max(probabilities)
    if isinstance(question, PredicateQuestion):
        return Decided(question.name, question.type, ("yes", "no"), weighed, probability=probabilities[0])
    if isinstance(question, ChoiceQuestion):
        values = tuple(choice.value for choice in question.choices)
        chosen = values[probabilities.index(confidence)]
        return Decided(question.name, question.type, values, weighed, choice=chosen, confidence=confidence)
    labels = tuple(level.label for level in question.levels)
    score = sum(level * probability for level, probability in enumerate(probabilities))
    return Decided(question.name, question.type, labels, weighed, score=score, confidence=confidence)
