"""One decode step of all groups: mix the K rows of each, draw one token for all of them, learn from it.

In: logits (rows, V) with hard constraints in them, and which rows form which complete group. Out: the mixture in each
leader's row, the drawn tokens, and log-probability rows with the telemetry in them. Knows no model runner and needs no
vLLM: `runner_v1.py` and `runner_v2.py` call `mix`, `draw`, `hand_out` and `report`, in this order, inside vLLM's own
sampler.

No exception leaves these: the groups in whose work it was raised get NaN where their token's log-probability belongs,
as groups do whose logits are not finite, and by it the scheduler knows that they must end. Nothing waits for a look.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from softspec.engine.wire import COLUMNS
from softspec.engine.worker.posterior import PrefixPosteriors
from softspec.engine.worker.rows import (
    GroupRows,
    Lineup,
    forced_tokens,
    line_up,
    on_host,
    watched_tokens,
)
from softspec.maths.mixture import distributions, mix, mixture_logits, update_log_weights
from softspec.maths.sampling import draw_tokens, perturbed_argmax
from softspec.maths.uncertainty import Predictive, predict, unmeasured

if TYPE_CHECKING:
    from vllm.v1.outputs import LogprobsTensors

logger = logging.getLogger(__name__)


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
    log_normalisers: Tensor
    log_weights: Tensor
    predictive: Predictive
    tokens: Tensor | None = None


class GroupMixer:
    """Mixes and draws for groups, and holds the prefix posterior of every group between steps."""

    def __init__(self) -> None:
        self.measures_uncertainty = True
        """Off, a token's entropies and disagreements are NaN: for measuring what they cost."""
        self._batches: list[_Batch] = []
        self._failed: list[GroupRows] = []
        self._device: torch.device | None = None
        self._lineups: dict[int, tuple[object, Lineup]] = {}
        self._posteriors = PrefixPosteriors()

    @property
    def group_ids(self) -> Set[str]:
        """The groups with a prefix posterior."""
        return self._posteriors.group_ids

    def forget(self, request_ids: Iterable[str]) -> None:
        """Free the prefix posteriors of finished groups; ids that are no group's are ignored."""
        self._posteriors.forget(request_ids)

    def mix(self, logits: Tensor, groups: Sequence[GroupRows]) -> None:
        """Begin a step: put each group's mixture, and its biases, into its leader's row of `logits`, float32.

        In those hard constraints have acted on all rows, soft ones on none.
        """
        by_size: dict[int, list[GroupRows]] = {}
        for group in groups:
            by_size.setdefault(len(group.rows), []).append(group)
        self._batches, self._failed, self._device = [], [], logits.device
        for batch in by_size.values():
            if not self._mixes(logits, batch):
                # All that comes from requests is read in mixing: here it shows whose it was.
                for group in batch:
                    if not self._mixes(logits, [group]):
                        self._failed.append(group)

    def draw(self, logits: Tensor) -> None:
        """Draw a token for each group from its leader's row, after penalties."""
        self._each(lambda batch: _draw(batch, logits))

    def hand_out(self, sampled: Tensor) -> None:
        """Put the drawn tokens into all rows of their groups; `sampled` is (rows,)."""
        for batch in self._batches:
            assert batch.tokens is not None
            sampled[batch.lineup.rows] = batch.tokens[:, None].to(sampled.dtype)
        for group in self._failed:
            sampled[list(group.rows)] = 0

    def report(self, others: "LogprobsTensors | None", num_rows: int) -> LogprobRows | None:
        """End the step: update the prefix posteriors and write the leaders' log-probability rows.

        Args:
            others: what vLLM's sampler reports of the other rows, if any of them asked.
        Returns:
            That with the leaders' rows in it: the drawn token, the likeliest ones their callers asked for, telemetry.
            None when the step had no group.
        """
        if not self._batches and not self._failed:
            return None
        width = max((batch.lineup.width for batch in self._batches), default=1)
        reported = _widened(others, num_rows, width, self._device)
        self._each(lambda batch: self._report(batch, reported))
        for group in self._failed:
            reported.logprobs[group.rows[0]] = math.nan
        self._batches = []
        return reported

    def _mixes(self, logits: Tensor, groups: Sequence[GroupRows]) -> bool:
        """Mix groups of one size, if that can be done."""
        try:
            self._batches.append(self._mix_batch(logits, groups))
        except Exception:
            _log(groups)
            return False
        return True

    def _each(self, stage: Callable[[_Batch], None]) -> None:
        """Take every batch through a stage; the groups of one in which it raises have failed."""
        for batch in list(self._batches):
            try:
                stage(batch)
            except Exception:
                _log(batch.groups)
                self._failed += batch.groups
                self._batches.remove(batch)

    def _mix_batch(self, logits: Tensor, groups: Sequence[GroupRows]) -> _Batch:
        lineup = self._lineup_of(groups, logits)
        log_weights = lineup.prior
        if not lineup.all_fixed:
            before = map(self._posteriors.before, groups, lineup.prior)
            log_weights = torch.stack(list(before))
        mix_rows = _mix_on_cpu if logits.device.type == "cpu" and len(groups[0].rows) > 1 else _mix_rows
        logprobs, log_normalisers, predictive = mix_rows(
            logits, lineup.rows, log_weights, self.measures_uncertainty
        )
        scores = predictive.logprobs
        if len(groups[0].rows) == 1:
            scores = logits.index_select(0, lineup.leaders)
        elif lineup.on_logits is not None:
            restored = mixture_logits(scores, log_weights, log_normalisers)
            scores = torch.where(lineup.on_logits, restored, scores)
        if lineup.biases is not None:
            which, token_ids, values = lineup.biases
            scores = scores.index_put((which, token_ids), values, accumulate=True)
        logits[lineup.leaders] = scores
        return _Batch(groups, lineup, logprobs, log_normalisers, log_weights, predictive)

    def _lineup_of(self, groups: Sequence[GroupRows], logits: Tensor) -> Lineup:
        key = [(group.seat, group.rows) for group in groups]
        num_members = len(groups[0].rows)
        known, lineup = self._lineups.get(num_members, (None, None))
        if lineup is None or known != key:
            lineup = line_up(groups, logits.shape[-1], logits.device)
            self._lineups[num_members] = key, lineup
        return lineup

    def _report(self, batch: _Batch, reported: LogprobRows) -> None:
        assert batch.tokens is not None
        tokens = batch.tokens[:, None, None].expand(-1, batch.lineup.rows.shape[1], 1)
        token_logprobs = batch.member_logprobs.gather(-1, tokens).squeeze(-1)
        if not batch.lineup.all_fixed:
            updated = update_log_weights(batch.log_weights, token_logprobs)
            if any(group.seat.spec.forced for group in batch.groups):
                # A forced token that no member can give says nothing about them.
                impossible = token_logprobs.amax(-1, keepdim=True) == -math.inf
                updated = torch.where(impossible, batch.log_weights, updated)
            for group, weights in zip(batch.groups, updated, strict=True):
                self._posteriors.learn(group, weights)
        _write_rows(reported, batch, token_logprobs)


def _mix_rows(
    logits: Tensor, rows: Tensor, log_weights: Tensor, measures_uncertainty: bool
) -> tuple[Tensor, Tensor, Predictive]:
    """Members' log-probabilities (G, K, V) and log-normalisers (G, K), and what the groups of these rows predict."""
    logprobs, probs, log_normalisers = distributions(
        logits.index_select(0, rows.flatten()).view(*rows.shape, -1)
    )
    if measures_uncertainty:
        predictive = predict(logprobs, log_weights, probs)
    else:
        predictive = unmeasured(mix(logprobs, probs, log_weights)[0])
    return logprobs, log_normalisers, predictive


def _mix_on_cpu(
    logits: Tensor, rows: Tensor, log_weights: Tensor, measures_uncertainty: bool
) -> tuple[Tensor, Tensor, Predictive]:
    """The same by the CPU's own loops, but for groups of which a member has no finite logit, or one too large."""
    *found, is_finite = _cpu("mixing").mix_groups(logits, rows, log_weights)
    for group in (~is_finite).nonzero().flatten().tolist():
        *members, predictive = _mix_rows(logits, rows[[group]], log_weights[[group]], True)
        for all_groups, own in zip(found, (*members, *vars(predictive).values()), strict=True):
            all_groups[group] = own[0]
    logprobs, log_normalisers, *numbers = found
    return logprobs, log_normalisers, Predictive(*numbers) if measures_uncertainty else unmeasured(numbers[0])


def _cpu(what: str) -> ModuleType:
    """Loops for CPUs; on GPUs numba need not be installed."""
    return import_module(f"softspec.engine.worker.cpu_{what}")


def _log(groups: Sequence[GroupRows]) -> None:
    logger.exception("could not mix %s", ", ".join(group.seat.group_id for group in groups))


def _draw(batch: _Batch, logits: Tensor) -> None:
    positions = on_host([group.position for group in batch.groups], logits.device)
    scores = logits.index_select(0, batch.lineup.leaders)
    draw = _cpu("drawing").draw_rows if logits.device.type == "cpu" else perturbed_argmax
    batch.tokens = draw_tokens(scores, **batch.lineup.settings, positions=positions, draw=draw)
    forced = forced_tokens(batch.groups, logits.device)
    if forced is not None:
        batch.tokens = batch.tokens.index_copy(0, *forced)


def _widened(
    others: "LogprobsTensors | None", num_rows: int, width: int, device: torch.device | None
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
    # A group that has no token left says so; one with other numbers that are not finite has NaN here already.
    none_left = batch.log_normalisers.amax(-1, keepdim=True) == -math.inf
    logprobs[:, :1].masked_fill_(none_left, -math.inf)
    reported.logprob_token_ids[lineup.leaders, : 1 + lineup.num_top] = token_ids.to(torch.int32)
    reported.logprobs[lineup.leaders, : 1 + lineup.num_top] = logprobs
    numbers = torch.stack([getattr(batch.predictive, name) for name in COLUMNS], -1)
    reported.logprobs[lineup.leaders[:, None], lineup.columns] = torch.cat([numbers, token_logprobs], -1)
    if batch.predictive.member_choices is not None:
        columns = lineup.columns[:, len(COLUMNS) :]
        choices = batch.predictive.member_choices.to(torch.int32)
        reported.logprob_token_ids[lineup.leaders[:, None], columns] = choices
    watched = watched_tokens(batch.groups, mixture.device)
    if watched is not None:
        which, token_ids, first = watched
        rows = lineup.leaders[which][:, None]
        columns = first[:, None] + torch.arange(lineup.rows.shape[1], device=mixture.device)
        reported.logprobs[rows, columns] = batch.member_logprobs[which, :, token_ids]
        reported.logprob_token_ids[rows, columns] = token_ids[:, None].to(torch.int32)
    reported.selected_token_ranks[lineup.leaders] = (mixture >= logprobs[:, :1]).sum(-1)
