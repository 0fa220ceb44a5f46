"""One decode step of all groups: mix the K rows of each, draw one token for all of them, learn from it.

In: logits (rows, V) and which rows form which complete group. Out: the mixture in each leader's row, the drawn tokens,
and log-probability rows with the telemetry in them. Knows no model runner and needs no vLLM: `runner_v1.py` and
`runner_v2.py` call `mix`, `draw`, `hand_out` and `report`, in this order, around vLLM's own sampler.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from softspec.engine.wire import COLUMNS
from softspec.engine.worker.rows import GroupRows, Lineup, line_up, on_host
from softspec.maths.mixture import distributions, mix, update_log_weights
from softspec.maths.sampling import draw_tokens
from softspec.maths.uncertainty import Predictive, predict, unmeasured

if TYPE_CHECKING:
    from vllm.v1.outputs import LogprobsTensors


class LogprobRows(NamedTuple):
    """Log-probability rows (rows, columns) and the drawn tokens' ranks (rows,), named as vLLM's `LogprobsTensors`."""

    logprob_token_ids: Tensor
    logprobs: Tensor
    selected_token_ranks: Tensor


@dataclass
class _Batch:
    """All groups of one size in this step, and what was computed of them so far."""

    groups: Sequence[GroupRows]
    lineup: Lineup
    member_logprobs: Tensor
    log_weights: Tensor
    predictive: Predictive
    tokens: Tensor | None = None


class GroupMixer:
    """Mixes and draws for groups, and holds the prefix posterior of every group between steps."""

    def __init__(self) -> None:
        self.measures_uncertainty = True
        """Off, a token's entropies and disagreements are NaN: for measuring what they cost."""
        self._batches: list[_Batch] = []
        self._lineups: dict[int, tuple[object, Lineup]] = {}
        self._log_weights: dict[str, list[Tensor]] = {}

    @property
    def group_ids(self) -> Set[str]:
        """The groups with a prefix posterior."""
        return self._log_weights.keys()

    def forget(self, request_ids: Iterable[str]) -> None:
        """Free the prefix posteriors of finished groups; ids that are no group's are ignored."""
        for request_id in request_ids:
            self._log_weights.pop(request_id, None)

    def mix(self, logits: Tensor, groups: Sequence[GroupRows]) -> None:
        """Begin a step: put each group's mixture log-probabilities into its leader's row of `logits`, float32."""
        by_size: dict[int, list[GroupRows]] = {}
        for group in groups:
            by_size.setdefault(len(group.rows), []).append(group)
        self._batches = [self._mix_batch(logits, batch) for batch in by_size.values()]
        for batch in self._batches:
            logits[batch.lineup.leaders] = batch.predictive.logprobs

    def draw(self, logits: Tensor) -> None:
        """Draw a token for each group from its leader's row, after masks, biases and penalties."""
        for batch in self._batches:
            positions = on_host([group.position for group in batch.groups], logits.device)
            batch.tokens = draw_tokens(
                logits.index_select(0, batch.lineup.leaders), **batch.lineup.settings, positions=positions
            )

    def hand_out(self, sampled: Tensor) -> None:
        """Put the drawn tokens into all rows of their groups; `sampled` is (rows,)."""
        for batch in self._batches:
            assert batch.tokens is not None
            sampled[batch.lineup.rows] = batch.tokens[:, None].to(sampled.dtype)

    def report(self, others: "LogprobsTensors | None", num_rows: int) -> LogprobRows | None:
        """End the step: update the prefix posteriors and write the leaders' log-probability rows.

        Args:
            others: what vLLM's sampler reports of the other rows, if any of them asked.
        Returns:
            That with the leaders' rows in it: the drawn token, the likeliest ones their callers asked for, telemetry.
            None when the step had no group.
        """
        if not self._batches:
            return None
        device = self._batches[0].member_logprobs.device
        reported = _widened(others, num_rows, max(batch.lineup.width for batch in self._batches), device)
        for batch in self._batches:
            assert batch.tokens is not None
            num_members = batch.lineup.rows.shape[1]
            tokens = batch.tokens[:, None, None].expand(-1, num_members, 1)
            token_logprobs = batch.member_logprobs.gather(-1, tokens).squeeze(-1)
            self._learn(batch, token_logprobs)
            _write_rows(reported, batch, token_logprobs)
        self._batches = []
        return reported

    def _mix_batch(self, logits: Tensor, groups: Sequence[GroupRows]) -> _Batch:
        lineup = self._lineup_of(groups, logits.device)
        log_weights = lineup.prior
        if not lineup.all_fixed:
            log_weights = torch.stack(
                [self._weights_at(group, prior) for group, prior in zip(groups, lineup.prior, strict=True)]
            )
        members = logits.index_select(0, lineup.rows.flatten()).view(*lineup.rows.shape, -1)
        logprobs, probs = distributions(members)
        if self.measures_uncertainty:
            predictive = predict(logprobs, log_weights, probs)
        else:
            predictive = unmeasured(mix(logprobs, probs, log_weights)[0])
        return _Batch(groups, lineup, logprobs, log_weights, predictive)

    def _lineup_of(self, groups: Sequence[GroupRows], device: torch.device) -> Lineup:
        key = [(group.seat, group.rows) for group in groups]
        num_members = len(groups[0].rows)
        known, lineup = self._lineups.get(num_members, (None, None))
        if lineup is None or known != key:
            lineup = line_up(groups, device)
            self._lineups[num_members] = key, lineup
        return lineup

    def _weights_at(self, group: GroupRows, prior: Tensor) -> Tensor:
        """The weights (K,) before output token `position`; a rewind (dropped output) finds its earlier ones."""
        history = self._log_weights.setdefault(group.seat.group_id, [prior])
        if group.seat.spec.weights_rule == "fixed":
            return history[0]
        assert group.position < len(history), (group, len(history))
        del history[group.position + 1 :]
        return history[-1]

    def _learn(self, batch: _Batch, token_logprobs: Tensor) -> None:
        if batch.lineup.all_fixed:
            return
        updated = update_log_weights(batch.log_weights, token_logprobs)
        for group, weights in zip(batch.groups, updated, strict=True):
            if group.seat.spec.weights_rule == "prefix_posterior":
                self._log_weights[group.seat.group_id].append(weights)


def _widened(
    others: "LogprobsTensors | None", num_rows: int, width: int, device: torch.device
) -> LogprobRows:
    """Empty rows that are wide enough for everybody, with the other rows' columns in them."""
    found = 0 if others is None else others.logprobs.shape[1]
    shape = num_rows, max(width, found)
    wide = LogprobRows(
        logprob_token_ids=torch.zeros(shape, dtype=torch.int32, device=device),
        logprobs=torch.zeros(shape, device=device),
        selected_token_ranks=torch.zeros(num_rows, dtype=torch.int64, device=device),
    )
    if others is not None:
        wide.logprob_token_ids[:, :found] = others.logprob_token_ids
        wide.logprobs[:, :found] = others.logprobs
        wide.selected_token_ranks[:] = others.selected_token_ranks
    return wide


def _write_rows(reported: LogprobRows, batch: _Batch, token_logprobs: Tensor) -> None:
    """Fill the leaders' rows; token_logprobs: (G, K), the drawn tokens' under each member."""
    assert batch.tokens is not None
    lineup, mixture, token_ids = batch.lineup, batch.predictive.logprobs, batch.tokens[:, None]
    if lineup.num_top:
        token_ids = torch.cat([token_ids, mixture.topk(lineup.num_top).indices], -1)
    logprobs = mixture.gather(-1, token_ids)
    reported.logprob_token_ids[lineup.leaders, : 1 + lineup.num_top] = token_ids.to(torch.int32)
    reported.logprobs[lineup.leaders, : 1 + lineup.num_top] = logprobs
    numbers = torch.stack([getattr(batch.predictive, name) for name in COLUMNS], -1)
    reported.logprobs[lineup.leaders[:, None], lineup.columns] = torch.cat([numbers, token_logprobs], -1)
    reported.selected_token_ranks[lineup.leaders] = (mixture >= logprobs[:, :1]).sum(-1)
