"""What travels between vLLM's processes for an ensemble request: the group on its way in, the numbers on their way out.

`GroupSpec` goes from the front end to the scheduler inside `SamplingParams.extra_args` (plain lists and numbers);
`Seat` goes from the scheduler to the sampler and tells which row of which group a request is. Back come a token's
numbers, in extra columns of the log-probability row that vLLM sends with it: the drawn token, the n likeliest tokens,
then `NUM_FIXED + K` numbers. They arrive with the token, in order, through any executor, with no side channel. Knows
nothing of schedulers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softspec.artefact.activation import shared_tokens
from softspec.artefact.manifest import WeightsRule
from softspec.maths.sampling import SamplingSpec
from softspec.maths.uncertainty import Predictive, TokenUncertainty

KEY = "softspec"
"""Our key in `SamplingParams.extra_args`."""


@dataclass(frozen=True)
class Adapter:
    """One member's LoRA as vLLM names it; equal `int_id` means the same weights."""

    name: str
    int_id: int
    path: str


@dataclass(frozen=True)
class GroupSpec:
    """K adapters that answer as one model.

    log_weights: K normalised natural logs. block_size: tokens; that of the activation, None where the adapters
    act on every token. num_top: how many of the
    mixture's likeliest tokens the caller wants beside each drawn token.
    """

    adapters: tuple[Adapter, ...]
    log_weights: tuple[float, ...]
    weights_rule: WeightsRule
    block_size: int | None
    num_top: int

    def to_wire(self) -> dict[str, Any]:
        return {
            "adapters": [[adapter.name, adapter.int_id, adapter.path] for adapter in self.adapters],
            "log_weights": list(self.log_weights),
            "weights_rule": self.weights_rule,
            "block_size": self.block_size,
            "num_top": self.num_top,
        }

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> "GroupSpec":
        return cls(
            adapters=tuple(Adapter(*adapter) for adapter in wire["adapters"]),
            log_weights=tuple(wire["log_weights"]),
            weights_rule=wire["weights_rule"],
            block_size=wire["block_size"],
            num_top=wire["num_top"],
        )

    @property
    def num_members(self) -> int:
        return len(self.adapters)

    def shared_tokens(self, prompt_tokens: int) -> int:
        """How many leading prompt tokens all members share."""
        return shared_tokens(self.block_size, prompt_tokens)


@dataclass(frozen=True)
class Seat:
    """Row `member` of the group whose leader (member 0) is request `group_id`."""

    group_id: str
    member: int
    spec: GroupSpec
    sampling: SamplingSpec


NUM_FIXED = 5


def num_columns(num_members: int) -> int:
    """How many log-probability columns the telemetry of K members takes."""
    return NUM_FIXED + num_members


def pack(predictive: Predictive, token_logprobs: Tensor) -> Tensor:
    """(G, NUM_FIXED + K) from the (G,) numbers of a decode step and the drawn token's (G, K) log-probabilities."""
    fixed = (
        predictive.total_entropy,
        predictive.aleatoric_entropy,
        predictive.epistemic,
        predictive.token_disagreement,
        predictive.disagreement,
    )
    return torch.cat([torch.stack(fixed, -1), token_logprobs], -1)


def unpack(token_id: int, log_prob: float, columns: Sequence[float]) -> TokenUncertainty:
    """The inverse of `pack` for one row."""
    total, aleatoric, epistemic, token_disagreement, disagreement = columns[:NUM_FIXED]
    return TokenUncertainty(
        token_id=token_id,
        log_prob=log_prob,
        total_entropy=total,
        aleatoric_entropy=aleatoric,
        epistemic=epistemic,
        token_disagreement=token_disagreement,
        disagreement=disagreement,
        member_log_probs=tuple(columns[NUM_FIXED:]),
    )
