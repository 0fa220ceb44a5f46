"""Rows of preferences, in TRL's formats, become two completions of one prompt.

In: rows and the base model's tokenizer. Out: `Preference`s, one at a time. Loads no model.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import model_validator

from softspec.train.data.messages import Message
from softspec.train.data.reading import PlacedRows, Reading
from softspec.train.data.rows import LabelledRow, Row, parse_row
from softspec.train.data.units import Preference


class PreferenceRow(LabelledRow):
    """One row of a preference: `prompt`, `chosen` and `rejected`, text or messages; or two whole conversations.

    Of two conversations without a `prompt` the prompt is what they begin with.
    """

    prompt: str | list[Message] | None = None
    chosen: str | list[Message]
    rejected: str | list[Message]

    @model_validator(mode="after")
    def _is_a_choice(self) -> "PreferenceRow":
        if self.prompt is None and isinstance(self.chosen, str):
            raise ValueError("expected a 'prompt' beside 'chosen' and 'rejected'")
        if isinstance(self.chosen, str) != isinstance(self.rejected, str):
            raise ValueError("'chosen' and 'rejected' must both be text or both be messages")
        if self.chosen == self.rejected:
            raise ValueError("'chosen' and 'rejected' are equal: there is no preference")
        return self

    def rows(self) -> dict[str, dict[str, Any]]:
        """Both completions as rows to supervise, by `chosen` and `rejected`."""
        prompt, chosen, rejected = self.prompt, self.chosen, self.rejected
        if isinstance(chosen, list) and isinstance(rejected, list) and prompt is None:
            common = 0
            while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
                common += 1
            prompt, chosen, rejected = chosen[:common], chosen[common:], rejected[common:]
        pair = {"chosen": chosen, "rejected": rejected}
        shared = self.model_dump(include={"source", "tools", "chat_template_kwargs"})
        return {
            key: {**shared, "prompt": prompt, "completion": completion} for key, completion in pair.items()
        }


def read_preferences(rows: PlacedRows, reading: Reading) -> Iterator[Preference]:
    """Preferences of rows with their places, checked and tokenised; their reference margins are still 0.

    Raises:
        DataError: as `read_examples`, or a row without two different completions.
    """
    return reading.fitting((place, [_preference(content, place, reading)]) for place, content in rows)


def _preference(content: Mapping[str, Any], place: str, reading: Reading) -> Preference:
    row = parse_row(content, PreferenceRow, place)
    examples = {}
    for key, completion in row.rows().items():
        supervised = parse_row(completion, Row, f"{place}: {key}")
        (examples[key],) = reading.examples(supervised, f"{place}: {key}")
    return Preference(examples["chosen"], examples["rejected"], row.group, row.weight)
