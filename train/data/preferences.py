"""Rows of preferences, in TRL's formats, become two completions of one prompt.

In: rows and the base model's tokenizer. Out: `Preference`s, one at a time. Loads no model.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import model_validator

from softspec.errors import DataError
from softspec.train.data.messages import Message
from softspec.train.data.reading import PlacedRows, Reading
from softspec.train.data.rows import LabelledRow, Row, is_messages_as_text, parse_row
from softspec.train.data.units import Preference

Completion = str | list[Message]


class PreferenceRow(LabelledRow):
    """A preference: `prompt`, `chosen` and `rejected`, text or messages; or two whole texts or conversations.

    Of two conversations the prompt is what they begin with, and a text `prompt` beside them a copy of it, as in the
    best-known data sets. Of two texts without a `prompt` it is what they begin with too, without a last space. All of
    that is as in TRL.
    """

    prompt: Completion | None = None
    chosen: Completion
    rejected: Completion

    @model_validator(mode="after")
    def _is_a_choice(self) -> "PreferenceRow":
        for key in ("chosen", "rejected"):
            text = getattr(self, key)
            if isinstance(text, str) and is_messages_as_text(text):
                raise ValueError(f"'{key}' is messages written as text: expected the list of messages itself")
        if isinstance(self.chosen, str) != isinstance(self.rejected, str):
            raise ValueError("'chosen' and 'rejected' must both be text or both be messages")
        if isinstance(self.chosen, str) and isinstance(self.prompt, list):
            raise ValueError("'prompt' is messages but 'chosen' is text: expected all text or all messages")
        if self.chosen == self.rejected:
            raise ValueError("'chosen' and 'rejected' are equal: there is no preference")
        self.parts()
        return self

    def parts(self) -> tuple[Completion, Completion, Completion]:
        """The prompt, and what was chosen and rejected after it.

        Raises:
            ValueError: both do not begin alike, or one is not one answer of the assistant after that.
        """
        if isinstance(self.chosen, str) or isinstance(self.rejected, str):
            return _of_texts(self.prompt, str(self.chosen), str(self.rejected))
        if isinstance(self.prompt, list):
            parts = self.prompt, self.chosen, self.rejected
        else:
            common = _common_turns(self.chosen, self.rejected)
            parts = self.chosen[:common], self.chosen[common:], self.rejected[common:]
        _check_answers(*parts, is_split=not isinstance(self.prompt, list))
        return parts

    def rows(self) -> dict[str, dict[str, Any]]:
        """Both completions as rows to supervise, by `chosen` and `rejected`."""
        prompt, *pair = self.parts()
        shared = self.model_dump(include={"source", "tools", "chat_template_kwargs"})
        return {
            key: {**shared, "prompt": prompt, "completion": completion}
            for key, completion in zip(("chosen", "rejected"), pair, strict=True)
        }


def _of_texts(prompt: Completion | None, chosen: str, rejected: str) -> tuple[Completion, str, str]:
    """Texts and the prompt that is given or that they begin with; something of each stays behind it."""
    if prompt is not None:
        return prompt, chosen, rejected
    shorter = min(len(chosen), len(rejected))
    common = next((number for number in range(shorter) if chosen[number] != rejected[number]), shorter)
    if common == shorter or chosen[:common].endswith(" "):
        common -= 1
    if common <= 0:
        raise ValueError("expected a 'prompt', or a 'chosen' and a 'rejected' that begin alike")
    return chosen[:common], chosen[common:], rejected[common:]


def _common_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """How many turns both begin with; something of each stays behind them. A key that is null is none."""
    pairs = [[turn.model_dump(exclude_none=True) for turn in turns] for turns in (chosen, rejected)]
    common = 0
    while common < min(map(len, pairs)) - 1 and pairs[0][common] == pairs[1][common]:
        common += 1
    return common


def _check_answers(
    prompt: list[Message], chosen: list[Message], rejected: list[Message], is_split: bool
) -> None:
    """Check that each side is one answer of the assistant, so that nothing else is compared."""
    if is_split and not prompt:
        raise ValueError(
            "'chosen' and 'rejected' share no first message: expected the prompt's in both or in 'prompt'"
        )
    behind = f"behind the {len(prompt)} that both begin with" if is_split else "behind 'prompt'"
    for key, turns in (("chosen", chosen), ("rejected", rejected)):
        roles = ", ".join(turn.role for turn in turns)
        if roles != "assistant":
            raise ValueError(
                f"'{key}' has messages of {roles or 'nobody'} {behind}: expected one message of the assistant"
            )


def read_preferences(rows: PlacedRows, reading: Reading) -> Iterator[Preference]:
    """Preferences of rows with their places, checked and tokenised; their reference margins are still 0.

    Raises:
        DataError: as `read_examples`, or a row without two completions that differ in their tokens.
    """
    return reading.fitting((place, [_preference(content, place, reading)]) for place, content in rows)


def _preference(content: Mapping[str, Any], place: str, reading: Reading) -> Preference:
    row = parse_row(content, PreferenceRow, place)
    examples = {}
    for key, completion in row.rows().items():
        supervised = parse_row(completion, Row, f"{place}: {key}")
        (examples[key],) = reading.examples(supervised, f"{place}: {key}")
    if examples["chosen"].completion_ids == examples["rejected"].completion_ids:
        raise DataError(
            f"{place}: 'chosen' and 'rejected' are the same tokens once rendered: there is no preference"
        )
    return Preference(examples["chosen"], examples["rejected"], row.group, row.weight)
