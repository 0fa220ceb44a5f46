"""Held-out scores: how well an ensemble explains completions, or preferences, that it was not trained on.

In: `Members` and units. Out: `Scores` of completions, and the `HeldOut` facts for `ensemble.json`. All in nats. Changes
nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from softspec.artefact.activation import Activation
from softspec.artefact.manifest import WeightsRule
from softspec.maths.mixture import mixture_logprobs, prefix_log_weights, sequence_loglik
from softspec.maths.renyi import (
    load,
    renyi_loss,
    responsibilities,
    routing_perplexity,
    soft_source_mi,
    specialisation,
    weighted_mean,
)
from softspec.maths.uncertainty import mutual_information, posterior_information
from softspec.train.config import TrainConfig
from softspec.train.data.units import SPARE_EXAMPLE, Example, Preference, Unit, in_batches
from softspec.train.loop.facts import HeldOut, HeldOutCompletions
from softspec.train.members.likelihood import (
    Batch,
    base_loglik,
    collate,
    completion_logprobs_in_parts,
    tail_length,
    with_trunk,
)
from softspec.train.members.members import Members
from softspec.train.processes import Processes
from softspec.train.result.margins import score_margins, summarise_margins


def score_held_out(
    config: TrainConfig, members: Members, units: Sequence[Unit], log_weights: Tensor, processes: Processes
) -> HeldOut:
    """Score held-out units of the configured objective, at least one; each process scores a part of them."""
    own = processes.own_indices(len(units))
    weights = _weights([unit for part in processes.deal(units) for unit in part])
    if config.objective == "dpo":
        preferences = cast("Sequence[Preference]", units)
        margins = score_margins(members, [preferences[index] for index in own], config)
        return summarise_margins(processes.gather_columns(margins), weights, log_weights, config)
    examples = cast("Sequence[Example]", units)
    part = [examples[index] for index in own]
    scores = score_examples(members, part, log_weights, config.activation, config.micro_batch_size)
    everyones = [example for each in processes.deal(examples) for example in each]
    together = scores.of_all(everyones, processes.gather_columns)
    return summarise_scores(together, log_weights.cpu(), config.renyi_alpha, config.weights_rule)


@dataclass(frozen=True)
class Scores:
    """N scored examples: log-likelihoods under the members (K, N) and the base (N,), nats, float64.

    `weights` (N,) say how much each counts in means.
    `fixed_weights_loglik` (N,) is that of the other mixture, whose weights no prefix updates.
    `path_information` (N,) is sum_t I(token; member) along the given completion, with prefix weights: an
    estimate of I(answer; member), conditional on this completion because it was not drawn from the mixture.
    """

    loglik: Tensor
    base_loglik: Tensor
    fixed_weights_loglik: Tensor
    path_information: Tensor
    weights: Tensor
    num_tokens: Tensor
    sources: tuple[str | None, ...]

    def of_all(self, examples: Sequence[Example], gather_columns: Callable[[Tensor], Tensor]) -> "Scores":
        """The scores of several processes together, each of which scored a part of `examples`, part after part."""
        return Scores(
            loglik=gather_columns(self.loglik),
            base_loglik=gather_columns(self.base_loglik[None])[0],
            fixed_weights_loglik=gather_columns(self.fixed_weights_loglik[None])[0],
            path_information=gather_columns(self.path_information[None])[0],
            weights=_weights(examples),
            num_tokens=_lengths(examples),
            sources=tuple(example.source for example in examples),
        )


@torch.no_grad()
def score_examples(
    members: Members,
    examples: Sequence[Example],
    log_weights: Tensor,
    activation: Activation,
    batch_size: int = 4,
) -> Scores:
    """Run every member and the base over all examples once."""
    columns = [torch.zeros(members.num_members + 3, 0, dtype=torch.float64)]
    device = next(members.model.parameters()).device
    order = sorted(range(len(examples)), key=lambda number: tail_length(examples[number], activation))
    for part, counts in members.rounds(list(in_batches(order, batch_size)), []):
        units = [examples[number] for number in part] or [SPARE_EXAMPLE]
        batch = with_trunk(members, collate(units, activation, device))
        column = torch.cat([_score_batch(members, batch, log_weights), base_loglik(members, batch)]).cpu()
        if counts:
            columns.append(column)
    *loglik, fixed, information, base = torch.cat(columns, 1)[:, torch.tensor(order).argsort()]
    return Scores(
        loglik=torch.stack(loglik),
        base_loglik=base,
        fixed_weights_loglik=fixed,
        path_information=information,
        weights=_weights(examples),
        num_tokens=_lengths(examples),
        sources=tuple(example.source for example in examples),
    )


def summarise_scores(
    scores: Scores, log_weights: Tensor, renyi_alpha: float, weights_rule: WeightsRule
) -> HeldOutCompletions:
    """The facts that `ensemble.json` keeps of held-out completions; `weights_rule` names the mixture that is served."""
    weights = scores.weights
    member_nll = -weighted_mean(scores.loglik, weights)
    shares = responsibilities(scores.loglik, log_weights, 1.0)
    prefix_nll = -weighted_mean(sequence_loglik(log_weights, scores.loglik), weights).item()
    fixed_nll = -weighted_mean(scores.fixed_weights_loglik, weights).item()
    return HeldOutCompletions(
        examples=scores.loglik.shape[1],
        tokens=int(scores.num_tokens.sum()),
        mixture_nll=fixed_nll if weights_rule == "fixed" else prefix_nll,
        prefix_posterior_nll=prefix_nll,
        fixed_weights_nll=fixed_nll,
        member_nll=member_nll.mean().item(),
        member_nlls=member_nll.tolist(),
        base_nll=-weighted_mean(scores.base_loglik, weights).item(),
        renyi_loss=weighted_mean(renyi_loss(scores.loglik, log_weights, renyi_alpha), weights).item(),
        load=load(shares, weights).tolist(),
        routing_perplexity=routing_perplexity(shares, weights).item(),
        specialisation=specialisation(shares, weights).item(),
        mutual_information=weighted_mean(posterior_information(log_weights, scores.loglik), weights).item(),
        path_information=weighted_mean(scores.path_information, weights).item(),
        soft_source_mi=_soft_source_mi(shares, scores.sources, weights),
    )


def _soft_source_mi(shares: Tensor, sources: Sequence[str | None], weights: Tensor) -> float | None:
    """I(member; source), nats, from responsibilities (K, N); None unless all examples have a source."""
    if None in sources:
        return None
    names = sorted({str(source) for source in sources})
    ids = torch.tensor([names.index(str(source)) for source in sources])
    return soft_source_mi(shares, ids, weights).item()


def _weights(units: Sequence[Unit]) -> Tensor:
    return torch.tensor([unit.weight for unit in units], dtype=torch.float64)


def _lengths(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([len(example.completion_ids) for example in examples])


def _score_batch(members: Members, batch: Batch, log_weights: Tensor) -> Tensor:
    """The members' log-likelihoods, the fixed-weights one and the path information of B examples, (K + 2, B)."""
    targets, owners = batch.targets[batch.supervised], batch.supervised.nonzero()[:, 0]
    log_weights = log_weights.to(targets.device, torch.float64)
    sums = log_weights.new_zeros(members.num_members + 2, batch.size)
    done = 0
    for part in completion_logprobs_in_parts(members, batch):
        here = slice(done, done + part.shape[1])
        done = here.stop
        examples, lengths = owners[here].unique_consecutive(return_counts=True)
        pieces = zip(part.split(lengths.tolist(), 1), targets[here].split(lengths.tolist()), strict=True)
        for example, (logprobs, tokens) in zip(examples.tolist(), pieces, strict=True):
            sums[:, example] += _score_piece(logprobs, tokens, log_weights, sums[:-2, example])
    return sums


def _score_piece(logprobs: Tensor, targets: Tensor, log_weights: Tensor, before: Tensor) -> Tensor:
    """What some tokens of an example add to its members' log-likelihoods, its fixed-weights one, its information.

    Args:
        logprobs, targets: (K, T, V) and (T,), of these tokens. before: (K,), the log-likelihood of those before them.
    Returns:
        (K + 2,), nats, float64.
    """
    index = targets.expand(len(logprobs), -1)[..., None]
    token_loglik = logprobs.gather(-1, index)[..., 0].double()
    weights = prefix_log_weights(log_weights + before, token_loglik)
    information = mutual_information(logprobs.transpose(0, 1), weights.T.to(logprobs)).double().sum()
    fixed = mixture_logprobs(token_loglik, log_weights).sum()
    return torch.cat([token_loglik.sum(1), fixed[None], information[None]])
