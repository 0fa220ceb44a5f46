"""What one ensemble request asks of the engine, in the form in which it travels inside `SamplingParams.extra_args`.

`GroupSpec` goes from the front end to the scheduler (plain lists and numbers on the wire); `Seat` goes from the
scheduler to the sampler and tells which row of which group a request is. Knows nothing of schedulers or tensors.
"""

from dataclasses import dataclass
from typing import Any

from softspec.manifest import WeightsRule, whole_block_tokens
from softspec.sampling import SamplingSpec

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

    log_weights: K normalised natural logs. block_size: tokens; 0 means the adapters act on every token, otherwise the
    first `floor((P - 1) / block_size) * block_size` of P prompt tokens run without them. num_top: how many of the
    mixture's likeliest tokens the caller wants beside each drawn token.
    """

    adapters: tuple[Adapter, ...]
    log_weights: tuple[float, ...]
    weights_rule: WeightsRule
    block_size: int
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
        return whole_block_tokens(prompt_tokens, self.block_size) if self.block_size else 0


@dataclass(frozen=True)
class Seat:
    """Row `member` of the group whose leader (member 0) is request `group_id`."""

    group_id: str
    member: int
    spec: GroupSpec
    sampling: SamplingSpec
