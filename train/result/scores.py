"""Evaluation: how well an ensemble explains held-out completions, and how its members share them.

In: `Members` and `Example`s. Out: `Scores` per example, and a summary for `ensemble.json`. All in nats.
Changes nothing.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softspec.artefact.activation import Activation
from softspec.artefact.base import end_of_turn_ids
from softspec.artefact.manifest import WeightsRule, load_manifest
from softspec.maths.mixture import mixture_logprobs, prefix_log_weights, sequence_loglik
from softspec.maths.renyi import (
    load,
    renyi_loss,
    responsibilities,
    routing_perplexity,
    soft_source_mi,
    specialisation,
)
from softspec.maths.uncertainty import mutual_information, posterior_information
from softspec.train.data.rows import Example, in_batches, read_examples
from softspec.train.data.sources import read_rows
from softspec.train.members.base import load_base, load_tokenizer
from softspec.train.members.likelihood import base_loglik, collate, completion_logprobs
from softspec.train.members.members import Members
from softspec.train.result.export import load_members


@dataclass(frozen=True)
class Scores:
    """N scored examples: log-likelihoods under the members (K, N) and the base (N,), nats, float64.

    `fixed_weights_loglik` (N,) is that of the other mixture, whose weights no prefix updates.
    `path_information` (N,) is sum_t I(token; member) along the given completion, with prefix weights: an
    estimate of I(answer; member), conditional on this completion because it was not drawn from the mixture.
    """

    loglik: Tensor
    base_loglik: Tensor
    fixed_weights_loglik: Tensor
    path_information: Tensor
    num_tokens: Tensor
    sources: tuple[str | None, ...]

    def of_all(self, examples: Sequence[Example], gather_columns: Callable[[Tensor], Tensor]) -> "Scores":
        """Those of several processes together, each of which scored a part of `examples`, one part after another."""
        return Scores(
            loglik=gather_columns(self.loglik),
            base_loglik=gather_columns(self.base_loglik[None])[0],
            fixed_weights_loglik=gather_columns(self.fixed_weights_loglik[None])[0],
            path_information=gather_columns(self.path_information[None])[0],
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
    for part in in_batches(examples, batch_size):
        batch = collate(part, activation, device)
        logprobs = completion_logprobs(members, batch)
        targets = batch.targets[batch.supervised]
        base = base_loglik(members, batch)[0].cpu()
        lengths = batch.supervised.sum(1).tolist()
        pieces = zip(logprobs.split(lengths, 1), targets.split(lengths), base, strict=True)
        for piece, target, based in pieces:
            columns.append(torch.cat([_score_one(piece, target, log_weights), based[None]])[:, None])
    *loglik, fixed, information, base = torch.cat(columns, 1)
    return Scores(
        loglik=torch.stack(loglik),
        base_loglik=base,
        fixed_weights_loglik=fixed,
        path_information=information,
        num_tokens=_lengths(examples),
        sources=tuple(example.source for example in examples),
    )


def summarise_scores(
    scores: Scores, log_weights: Tensor, renyi_alpha: float, weights_rule: WeightsRule
) -> dict[str, Any]:
    """The facts that `ensemble.json` keeps as `held_out`; means over examples, nats.

    `mixture_nll` compares ensembles of any alpha and size: it is that of the mixture that is served, by `weights_rule`.
    `renyi_loss` does not, it always falls with alpha.
    Responsibilities are those at alpha = 1, the Bayes posterior over members given the completion.
    """
    member_nll = -scores.loglik.mean(1)
    shares = responsibilities(scores.loglik, log_weights, 1.0)
    prefix_nll = -sequence_loglik(log_weights, scores.loglik).mean().item()
    fixed_nll = -scores.fixed_weights_loglik.mean().item()
    summary = {
        "examples": scores.loglik.shape[1],
        "tokens": int(scores.num_tokens.sum()),
        "mixture_nll": fixed_nll if weights_rule == "fixed" else prefix_nll,
        "prefix_posterior_nll": prefix_nll,
        "fixed_weights_nll": fixed_nll,
        "member_nll": member_nll.mean().item(),
        "member_nlls": member_nll.tolist(),
        "base_nll": -scores.base_loglik.mean().item(),
        "renyi_loss": renyi_loss(scores.loglik, log_weights, renyi_alpha).mean().item(),
        "load": load(shares).tolist(),
        "routing_perplexity": routing_perplexity(shares).item(),
        "specialisation": specialisation(shares).item(),
        "mutual_information": posterior_information(log_weights, scores.loglik).mean().item(),
        "path_information": scores.path_information.mean().item(),
    }
    if None not in scores.sources:
        names = sorted({str(source) for source in scores.sources})
        ids = torch.tensor([names.index(str(source)) for source in scores.sources])
        summary["soft_source_mi"] = soft_source_mi(shares, ids).item()
    return summary


def _lengths(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([len(example.completion_ids) for example in examples])


def _score_one(logprobs: Tensor, targets: Tensor, log_weights: Tensor) -> Tensor:
    """From (K, T, V) and (T,): log-likelihoods, that of the mixture with fixed weights, path information; (K + 2,)."""
    index = targets.expand(len(logprobs), -1)[..., None]
    token_loglik = logprobs.gather(-1, index)[..., 0].double()
    before = prefix_log_weights(log_weights.to(token_loglik), token_loglik)
    information = mutual_information(logprobs.transpose(0, 1), before.T.to(logprobs)).double().sum()
    fixed = mixture_logprobs(token_loglik, log_weights.to(token_loglik)).sum()
    return torch.cat([token_loglik.sum(1), fixed[None], information[None]]).cpu()


def evaluate_ensemble(
    ensemble_dir: Path, data_file: str, base_model: str | None = None, batch_size: int = 4
) -> dict[str, Any]:
    """Score a saved ensemble on a file of examples; `base_model` replaces the path in the manifest."""
    manifest = load_manifest(ensemble_dir)
    base, revision = base_model or manifest.base_model.path, manifest.base_model.revision
    tokenizer = load_tokenizer(base, revision)
    eos_ids = end_of_turn_ids(tokenizer, base, revision)
    examples = list(read_examples(read_rows(data_file), tokenizer, sys.maxsize, eos_ids))
    members = load_members(ensemble_dir, load_base(base, revision))
    log_weights = torch.tensor(manifest.log_weights, dtype=torch.float64)
    scores = score_examples(members, examples, log_weights, manifest.activation, batch_size)
    return summarise_scores(scores, log_weights, manifest.renyi_alpha, manifest.weights_rule)
