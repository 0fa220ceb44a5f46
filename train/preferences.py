"""Preference pairs: JSONL rows in TRL's formats become two examples with one prompt.

In: a file and the base model's tokenizer. Out: `Preference`s. Loads no model.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from transformers import PreTrainedTokenizerBase

from softspec.errors import DataError
from softspec.manifest import first_problem
from train.data import Example, LabelledRow, Message, Row, checked_length, read_rows, tokenise


@dataclass(frozen=True)
class Preference:
    """Two completions of one prompt. `reference_margin`: log p(chosen) - log p(rejected) under the base, nats.

    `group` and `weight` are the pair's, as those of an `Example`.
    """

    chosen: Example
    rejected: Example
    group: str | None = None
    weight: float = 1.0
    reference_margin: float = 0.0


class PreferenceRow(LabelledRow):
    """One JSONL line: `prompt`, `chosen` and `rejected`, all text or all messages; or two whole conversations.

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
        """Both completions as supervised rows."""
        prompt, chosen, rejected = self.prompt, self.chosen, self.rejected
        if isinstance(chosen, list) and isinstance(rejected, list) and prompt is None:
            common = 0
            while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
                common += 1
            prompt, chosen, rejected = chosen[:common], chosen[common:], rejected[common:]
        pair = {"chosen": chosen, "rejected": rejected}
        return {
            key: {"prompt": prompt, "completion": completion, "source": self.source}
            for key, completion in pair.items()
        }


def load_preferences(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, eos_ids: Collection[int]
) -> list[Preference]:
    """Read and tokenise a JSONL file; reference margins are still 0.

    Raises:
        DataError: as `load_examples`, or a line without two different completions.
    """
    pairs = []
    for place, row in read_rows(path, PreferenceRow):
        examples = {}
        for key, content in row.rows().items():
            try:
                completion = Row.model_validate(content)
            except ValidationError as error:
                raise DataError(f"{place}: {key}: {first_problem(error)}") from error
            examples[key] = checked_length(tokenise(completion, tokenizer, eos_ids, place), max_length, place)
        pairs.append(Preference(examples["chosen"], examples["rejected"], row.group, row.weight))
    if not pairs:
        raise DataError(f"{path}: no preferences found; expected one JSON object a line")
    return pairs
