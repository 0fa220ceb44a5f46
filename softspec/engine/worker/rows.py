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
from softspec.errors import ConfigError

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

    from softspec.maths.sampling import SamplingSpec


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

    rows, prior: (G, K). columns: (G, num_columns(K)), where telemetry goes; `width` is that of the widest group's row,
    watched tokens included. settings: (G,) each, on the host.
    on_logits: (G, 1), whose scores must be on the scale of logits: those with a repetition penalty, as nothing else
    depends on where zero is. biases: groups, token ids and what is added to their scores, (N,) each. None if none asks.
    """

    rows: Tensor
    prior: Tensor
    columns: Tensor
    width: int
    num_top: int
    all_fixed: bool
    settings: dict[str, Tensor]
    on_logits: Tensor | None
    biases: tuple[Tensor, Tensor, Tensor] | None

    @property
    def leaders(self) -> Tensor:
        """The row (G,) of each group's member 0."""
        return self.rows[:, 0]


def line_up(groups: Sequence[GroupRows], vocab_size: int, device: torch.device) -> Lineup:
    """The tensors of groups of one size. Integers that no tensor holds are wrapped or clamped.

    Raises:
        ConfigError: a bias is for a token that is not in the vocabulary.
    """
    specs = [group.seat.spec for group in groups]
    sampling = [group.seat.sampling for group in groups]
    telemetry = range(num_columns(len(groups[0].rows)))
    on_logits = [[spec.repetition_penalty != 1] for spec in sampling]
    return Lineup(
        rows=_on_device([group.rows for group in groups], device),
        prior=_on_device([spec.log_weights for spec in specs], device),
        columns=_on_device([[1 + spec.num_top + column for column in telemetry] for spec in specs], device),
        width=max(1 + spec.num_top + spec.num_columns for spec in specs),
        num_top=max(spec.num_top for spec in specs),
        all_fixed=all(spec.weights_rule == "fixed" for spec in specs),
        settings={
            "temperature": on_host([spec.temperature for spec in sampling], device),
            "top_k": on_host([min(max(spec.top_k, 0), vocab_size) for spec in sampling], device),
            "top_p": on_host([spec.top_p for spec in sampling], device),
            "min_p": on_host([spec.min_p for spec in sampling], device),
            "seeds": on_host([spec.seed % 2**63 for spec in sampling], device),
        },
        on_logits=_on_device(on_logits, device) if any(map(any, on_logits)) else None,
        biases=_biases(sampling, vocab_size, device),
    )


def forced_tokens(groups: Sequence[GroupRows], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Which of the groups must give a certain token in this step, and which token: (N,) each; None if none must."""
    found = [
        (number, token)
        for number, group in enumerate(groups)
        if (token := group.seat.spec.forced_at(group.position)) is not None
    ]
    if not found:
        return None
    which, token_ids = zip(*found, strict=True)
    return _on_device(which, device), _on_device(token_ids, device)


def watched_tokens(groups: Sequence[GroupRows], device: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
    """The groups whose callers watch tokens in this step, the tokens, and the first column of each: (N,) each."""
    found: list[tuple[int, int, int]] = []
    for number, group in enumerate(groups):
        spec = group.seat.spec
        if watched := spec.watched_at(group.position):
            first, size = 1 + spec.num_top + num_columns(spec.num_members), spec.num_members
            found += [(number, token, first + place * size) for place, token in enumerate(watched)]
    if not found:
        return None
    which, token_ids, columns = zip(*found, strict=True)
    return _on_device(which, device), _on_device(token_ids, device), _on_device(columns, device)


def _biases(
    sampling: Sequence["SamplingSpec"], vocab_size: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor] | None:
    found = [(group, *bias) for group, spec in enumerate(sampling) for bias in spec.logit_bias]
    if not found:
        return None
    groups, token_ids, values = zip(*found, strict=True)
    if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        raise ConfigError(
            f"logit_bias is for tokens {min(token_ids)} to {max(token_ids)}: expected 0 to {vocab_size - 1}"
        )
    return _on_device(groups, device), _on_device(token_ids, device), _on_device(values, device)


def on_host(values: Sequence[object], device: torch.device) -> Tensor:
    """A tensor on the CPU from where `device` can fetch it without making the host wait."""
    return torch.tensor(values, pin_memory=device.type == "cuda")


def _on_device(values: Sequence[object], device: torch.device) -> Tensor:
    return on_host(values, device).to(device, non_blocking=True)
