"""Texts become the token ids of training and serving: prompts, whole answers to them, and options.

In: prompts as text or messages, answers as text. Out: ids. A text is used as it is, as at `/v1/completions`; messages
go through the base's chat template, as at `/v1/chat/completions`. Knows no backend.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from softspec.artefact.answer_tokens import following
from softspec.artefact.base import context_length, end_of_turn_ids
from softspec.console import tell
from softspec.ensemble.backend import Asked
from softspec.errors import DataError
from softspec.train.data.reading import Reading
from softspec.train.data.rows import PromptRow, Row, parse_row
from softspec.train.members.base import load_tokenizer

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, used as it is, or the messages of a conversation."""
ANY_LENGTH = 2**62


class Texts:
    """The base's tokenizer and chat template, asked as training asks them."""

    def __init__(self, base: str, revision: str | None = None) -> None:
        """Read the tokenizer of a base, a directory or hub id.

        Raises:
            ConfigError: the base cannot be found or has no tokenizer.
        """
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(base, revision)
        self.stop_ids = end_of_turn_ids(self.tokenizer, base, revision)
        self.context = context_length(base, revision)
        self._told: set[str] = set()
        self.reading = Reading(self.tokenizer, self.stop_ids, max_length=ANY_LENGTH, context=self.context)

    def asked(self, prompt: Prompt, answers: Sequence[str], place: str) -> Asked:
        """A prompt with whole answers, which end with the token that ends a turn.

        Raises:
            DataError: it cannot be rendered or tokenised as in training, or is longer than the context.
        """
        if isinstance(answers, str):
            raise DataError(f"{place}: its answers are one text: expected a list of texts")
        examples = [
            example
            for answer in answers
            for example in self.reading.examples(_row(prompt, answer, place), place)
        ]
        prompt_ids = examples[0].prompt_ids if examples else self.prompt_ids(prompt, place)
        return self.fitting(Asked(place, prompt_ids, tuple(example.completion_ids for example in examples)))

    def prompt_ids(self, prompt: Prompt, place: str, **template: Any) -> tuple[int, ...]:
        """A prompt that is to be answered.

        Args:
            template: `chat_template_kwargs`.
        Raises:
            DataError: it cannot be rendered or tokenised, or leaves no room for an answer.
        """
        row = parse_row({"prompt": _listed(prompt, place), **template}, PromptRow, place)
        ids = self.reading.prompt_ids(row, place)
        if self.context is not None and len(ids) >= self.context:
            raise DataError(
                f"{place}: has {len(ids)} tokens: expected less than the context, {self.context}, to leave room for an "
                "answer"
            )
        return ids

    def room_behind(self, prompt_ids: Sequence[int], wanted: int) -> int:
        """How many of the wanted tokens there is room for behind a prompt."""
        return wanted if self.context is None else min(wanted, self.context - len(prompt_ids))

    def option_ids(self, text: str) -> list[int]:
        """The tokens with which an answer begins that says this text, without what ends it."""
        return following(self.tokenizer, text)

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends an answer to messages."""
        return self.asked([{"role": "user", "content": "-"}], ["-"], "a conversation of two turns").answers[
            0
        ][-1]

    def fitting(self, asked: Asked) -> Asked:
        """The same, if it is short enough.

        Raises:
            DataError: it is longer than the context.
        """
        if self.context is not None and asked.num_tokens > self.context:
            raise DataError(
                f"{asked.place}: has {asked.num_tokens} tokens with its longest answer: expected at most the "
                f"context, {self.context}"
            )
        return asked

    def tell_notes(self) -> None:
        """Say, once each, what was noted about the texts so far."""
        for line in self.reading.notes.lines():
            remark = line.partition(" (")[0]
            if remark not in self._told:
                self._told.add(remark)
                tell(line)


def _listed(prompt: Prompt, place: str) -> str | list[dict[str, Any]]:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping) or not isinstance(prompt, Sequence):
        raise DataError(f"{place}: is {type(prompt).__name__}: expected a text or a list of messages")
    messages = []
    for message in prompt:
        if not isinstance(message, Mapping):
            raise DataError(f"{place}: has {type(message).__name__} among its messages: expected objects")
        messages.append(dict(message))
    return messages


def _row(prompt: Prompt, answer: str, place: str) -> Row:
    if not isinstance(answer, str):
        raise DataError(f"{place}: an answer is {type(answer).__name__}: expected text")
    is_text = isinstance(prompt, str)
    completion = answer if is_text else [{"role": "assistant", "content": answer}]
    return parse_row({"prompt": _listed(prompt, place), "completion": completion}, Row, place)
