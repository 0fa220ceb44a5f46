"""The units of training, tokenised: completions (SFT) and preferences between two completions (DPO).

In: token ids. Out: `Example`s and `Preference`s. Knows neither files nor tokenizers nor models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, overload

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A prompt and its completion: the loss is on `completion_ids`, which end with the end-of-turn token.

    `weight` is how much it counts; examples of one `bundle` are explained together. `source` is for evaluation only.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    source: str | None = None
    bundle: str | None = None
    weight: float = 1.0

    @property
    def completions(self) -> "tuple[Example, ...]":
        """The completions that members are asked about: this one."""
        return (self,)


@dataclass(frozen=True)
class Preference:
    """Two completions of one prompt, of which one was chosen.

    `bundle` and `weight` are the preference's, as those of an `Example`. `reference_margin` is
    log p(chosen) - log p(rejected) under the base, nats.
    """

    chosen: Example
    rejected: Example
    bundle: str | None = None
    weight: float = 1.0
    reference_margin: float = 0.0

    @property
    def completions(self) -> tuple[Example, ...]:
        """The completions that members are asked about: the chosen one, then the rejected one."""
        return self.chosen, self.rejected


SPARE_EXAMPLE = Example((0,), (0,))
SPARE_PREFERENCE = Preference(SPARE_EXAMPLE, SPARE_EXAMPLE)
"""What a process runs that has nothing to run, for the sake of others; nothing comes of them."""
Unit = Example | Preference
UnitT = TypeVar("UnitT", bound=Unit)


class WithReference(Sequence[Preference]):
    """Preferences on disk and beside them, in memory, what the base makes of each."""

    def __init__(self, preferences: Sequence[Preference], margins: Sequence[float]) -> None:
        """Put `margins`, log p(chosen) - log p(rejected) under the base, nats, beside the preferences."""
        self._preferences = preferences
        self.margins = margins

    def __len__(self) -> int:
        return len(self._preferences)

    @overload
    def __getitem__(self, index: int) -> Preference: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Preference]: ...
    def __getitem__(self, index: int | slice) -> Preference | Sequence[Preference]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        return replace(self._preferences[index], reference_margin=self.margins[index])


def in_batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Runs of `size` items; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
