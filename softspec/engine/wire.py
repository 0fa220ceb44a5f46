"""What travels between vLLM's processes for an ensemble request: the group on its way in, the numbers on their way out.

`GroupSpec` goes from the front end to the scheduler inside `SamplingParams.extra_args` (plain lists and numbers);
`Seat` goes from the scheduler to the sampler and tells which row of which group a request is. Back come a token's
numbers, in extra columns of the log-probability row that vLLM sends with it: the drawn token, the n likeliest tokens,
then `COLUMNS` and K more, then K for each watched token. They arrive with the token, in order, through any executor,
with no side channel. Knows nothing of schedulers; needs neither vLLM nor torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softspec.artefact.activation import shared_tokens
from softspec.artefact.calibration import Calibration
from softspec.artefact.manifest import WeightsRule
from softspec.maths.answer import TokenUncertainty

if TYPE_CHECKING:
    from softspec.maths.sampling import SamplingSpec

KEY = "softspec"
"""Our key in `SamplingParams.extra_args`."""

MAX_WATCHED = 128
"""Tokens of which one step of a group may tell each member's log-probability, beside the drawn one."""

MAX_TOP_LOGPROBS = 20
"""OpenAI's limit on likeliest tokens, and ours for every model; the engine's own is larger, because telemetry travels
beside them."""

LOCKSTEP_FAILED = "softspec:lockstep"
"""The `stop_reason` of a request that the scheduler ended with an error because its members came apart."""

MIXING_FAILED = "softspec:mixing"
"""The `stop_reason` of a request that was ended with an error because its members could not be mixed, for instance when
an adapter gives numbers that are not finite."""

NO_TOKEN_LEFT = "softspec:no-token"
"""The `stop_reason` of a request that was ended with an error because its own constraints, such as a grammar and
`allowed_token_ids`, left no token that it may draw. An error without any of these is vLLM's own, such as a grammar that
does not compile."""


@dataclass(frozen=True)
class Adapter:
    """One member's LoRA as vLLM names it; equal `int_id` means the same weights."""

    name: str
    int_id: int
    path: str


@dataclass(frozen=True)
class GroupSpec:
    """K adapters that answer as one model.

    log_weights: K normalised natural logs. block_size: tokens; that of the activation, None where the adapters act on
    every token. num_top: how many of the mixture's likeliest tokens the caller wants beside each drawn token.
    has_readers: whether the caller reads any log-probability, be it the drawn token's alone; their tokens need text.
    is_traced: whether anybody reads the numbers at all; else the front end drops them as they come.
    model: the name under which the group is served, for whoever counts.
    forced: the answer, where it is known: token t of the output is forced[t], and everything else is as if it had been
    drawn. watched: for each of those steps the tokens whose log-probability under each member is told as well.
    calibration: of the ensemble, for whoever reads its numbers; it does not travel.
    """

    adapters: tuple[Adapter, ...]
    log_weights: tuple[float, ...]
    weights_rule: WeightsRule
    block_size: int | None
    num_top: int
    first_layer: int = 0
    has_readers: bool = False
    is_traced: bool = True
    model: str = ""
    forced: tuple[int, ...] = ()
    watched: tuple[tuple[int, ...], ...] = ()
    calibration: Calibration | None = None

    def to_wire(self) -> dict[str, Any]:
        """The group as plain lists and numbers, which vLLM's processes can send."""
        return {
            "adapters": [[adapter.name, adapter.int_id, adapter.path] for adapter in self.adapters],
            "log_weights": list(self.log_weights),
            "weights_rule": self.weights_rule,
            "block_size": self.block_size,
            "num_top": self.num_top,
            "first_layer": self.first_layer,
            "has_readers": self.has_readers,
            "is_traced": self.is_traced,
            "model": self.model,
            "forced": list(self.forced),
            "watched": [list(token_ids) for token_ids in self.watched],
        }

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> "GroupSpec":
        """The group that `to_wire` wrote."""
        return cls(
            adapters=tuple(Adapter(*adapter) for adapter in wire["adapters"]),
            log_weights=tuple(wire["log_weights"]),
            weights_rule=wire["weights_rule"],
            block_size=wire["block_size"],
            num_top=wire["num_top"],
            first_layer=wire["first_layer"],
            has_readers=wire["has_readers"],
            is_traced=wire["is_traced"],
            model=wire["model"],
            forced=tuple(wire["forced"]),
            watched=tuple(map(tuple, wire["watched"])),
        )

    @property
    def num_members(self) -> int:
        """K, how many rows the group takes."""
        return len(self.adapters)

    @property
    def num_columns(self) -> int:
        """How many log-probability columns come after the drawn and the likeliest tokens."""
        return num_columns(self.num_members, max(map(len, self.watched), default=0))

    def forced_at(self, position: int) -> int | None:
        """The token that must come at this position of the output; None where one is drawn."""
        return self.forced[position] if position < len(self.forced) else None

    def watched_at(self, position: int) -> tuple[int, ...]:
        """The tokens whose log-probabilities under each member are told at this position of the output."""
        return self.watched[position] if position < len(self.watched) else ()

    def shared_tokens(self, prompt_tokens: int) -> int:
        """How many leading prompt tokens all members share."""
        return shared_tokens(self.block_size, prompt_tokens)


@dataclass(frozen=True)
class Seat:
    """The place of a row: member `member` of the group whose leader (member 0) is request `group_id`."""

    group_id: str
    member: int
    spec: GroupSpec
    sampling: "SamplingSpec"


COLUMNS = ("total_entropy", "aleatoric_entropy", "epistemic", "disagreement")
"""The numbers of a decode step that travel with its token, by their names in `Predictive` and `TokenUncertainty`. After
them come the drawn token's log-probabilities under each member. A column is a number beside a token id: the id beside
a member's log-probability is the token that this member found likeliest."""


def num_columns(num_members: int, num_watched: int = 0) -> int:
    """How many log-probability columns the telemetry of K members takes, each watched token's K among them."""
    return len(COLUMNS) + num_members * (1 + num_watched)


def unpack(
    token_ids: Sequence[int], log_probs: Sequence[float], num_top: int, num_members: int
) -> TokenUncertainty:
    """A drawn token with its numbers, read from the log-probability row that the worker wrote for it."""
    first = 1 + num_top
    members = slice(first + len(COLUMNS), first + num_columns(num_members))
    numbers = dict(zip(COLUMNS, log_probs[first:], strict=False))
    is_measured = not math.isnan(numbers["disagreement"])
    return TokenUncertainty(
        token_id=token_ids[0],
        log_prob=log_probs[0],
        member_log_probs=tuple(log_probs[members]),
        member_choices=tuple(token_ids[members]) if is_measured else (),
        **numbers,
    )


def unpack_watched(
    token_ids: Sequence[int], log_probs: Sequence[float], spec: GroupSpec, position: int
) -> dict[int, tuple[float, ...]]:
    """The log-probabilities under each member of the tokens that were watched at a position, from the same row."""
    first, size = 1 + spec.num_top + num_columns(spec.num_members), spec.num_members
    return {
        token_ids[start]: tuple(log_probs[start : start + size])
        for start in range(first, first + size * len(spec.watched_at(position)), size)
    }
