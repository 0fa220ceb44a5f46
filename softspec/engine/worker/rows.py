"""The rows of a step: which of them form complete groups, and where these are, as tensors.

In: the seats that the scheduler gave to rows. Out: groups with their rows, and a line-up of the groups of one size.
Knows no model runner and no logits; needs no vLLM.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from softspec.engine.wire import KEY, Seat, num_columns

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams


@dataclass(frozen=True)
class GroupRows:
    """One complete group in this step: its leader's seat, its K rows in member order, tokens drawn so far."""

    seat: Seat
    rows: tuple[int, ...]
    position: int


def seat_of(params: "SamplingParams | None") -> Seat | None:
    """The seat that the scheduler gave a row; None for a request outside groups."""
    return (params.extra_args or {}).get(KEY) if params else None


def complete_groups(drawing: Iterable[tuple[Seat, int, int]]) -> list[GroupRows]:
    """The groups that have all their K rows among the (seat, row, position) that really draw a token in this step."""
    members: dict[str, dict[int, tuple[Seat, int, int]]] = {}
    for seat, row, position in drawing:
        members.setdefault(seat.group_id, {})[seat.member] = seat, row, position
    groups = []
    for seated in members.values():
        if 0 in seated and len(seated) == seated[0][0].spec.num_members:
            seat, _, position = seated[0]
            groups.append(GroupRows(seat, tuple(seated[k][1] for k in range(len(seated))), position))
    return groups


@dataclass(frozen=True)
class Lineup:
    """The tensors that stay the same while the same G groups decode in the same rows, made once.

    rows, prior: (G, K). columns: (G, num_columns(K)), where telemetry goes. settings: (G,) each, on the host.
    """

    rows: Tensor
    prior: Tensor
    columns: Tensor
    num_top: int
    all_fixed: bool
    settings: dict[str, Tensor]

    @property
    def leaders(self) -> Tensor:
        """The row (G,) of each group's member 0."""
        return self.rows[:, 0]

    @property
    def width(self) -> int:
        """Log-probability columns of a leader's row: the drawn token, the likeliest ones, telemetry."""
        return 1 + self.num_top + num_columns(self.rows.shape[1])


def line_up(groups: Sequence[GroupRows], device: torch.device) -> Lineup:
    """The tensors of groups of one size."""
    specs = [group.seat.spec for group in groups]
    sampling = [group.seat.sampling for group in groups]
    telemetry = range(num_columns(len(groups[0].rows)))
    return Lineup(
        rows=_on_device([group.rows for group in groups], device),
        prior=_on_device([spec.log_weights for spec in specs], device),
        columns=_on_device([[1 + spec.num_top + column for column in telemetry] for spec in specs], device),
        num_top=max(spec.num_top for spec in specs),
        all_fixed=all(spec.weights_rule == "fixed" for spec in specs),
        settings={
            "temperature": on_host([spec.temperature for spec in sampling], device),
            "top_k": on_host([spec.top_k for spec in sampling], device),
            "top_p": on_host([spec.top_p for spec in sampling], device),
            "min_p": on_host([spec.min_p for spec in sampling], device),
            "seeds": on_host([spec.seed for spec in sampling], device),
        },
    )


def on_host(values: Sequence[object], device: torch.device) -> Tensor:
    """A tensor on the CPU from where `device` can fetch it without making the host wait."""
    return torch.tensor(values, pin_memory=device.type == "cuda")


def _on_device(values: Sequence[object], device: torch.device) -> Tensor:
    return on_host(values, device).to(device, non_blocking=True)
