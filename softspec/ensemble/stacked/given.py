"""Given answers: how likely every member finds them, and what the mixture makes of each of their tokens.

In: `Rows` of prompts and answers as ids. Out: numbers on the CPU, nats. Draws nothing.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softspec.artefact.manifest import WeightsRule
from softspec.ensemble.stacked.batches import Limits
from softspec.ensemble.stacked.rows import Ids, Rows, padded, read_prompts
from softspec.maths.answer import TokenUncertainty
from softspec.maths.mixture import mixture_logprobs, prefix_log_weights, sequence_loglik
from softspec.maths.uncertainty import Predictive, predict
from softspec.train.members.head import Head
from softspec.train.members.members import Members


def states_of(
    members: Members, limits: Limits, prompts: Sequence[Ids], answers: Sequence[tuple[int, Ids]]
) -> Iterator[tuple[list[int], Tensor, Head]]:
    """The states before each token of given answers, batch by batch.

    Args:
        answers: to each the number of its prompt; none is empty.
    Yields:
        the numbers of some of the answers; their states (K, B, T, hidden), of which those beyond an answer's own tokens
        are padding; what makes logits of them.
    """
    of_prompt: dict[int, list[int]] = {number: [] for number in range(len(prompts))}
    for number, (prompt, _) in enumerate(answers):
        of_prompt[prompt].append(number)
    most = [max((len(answers[each][1]) for each in own), default=0) for own in of_prompt.values()]
    for batch in limits.batches([len(prompt) for prompt in prompts], most):
        rows = read_prompts(members, [prompts[number] for number in batch], limits.block_size)
        own = [(place, answer) for place, number in enumerate(batch) for answer in of_prompt[number]]
        own.sort(key=lambda pair: len(answers[pair[1]][1]))
        size = max(1, limits.tokens_at_once // (members.num_members * (rows.mask.shape[1] + max(most))))
        for start in range(0, len(own), size):
            part = own[start : start + size]
            chosen = rows.selected(torch.tensor([place for place, _ in part], device=rows.mask.device))
            numbers = [answer for _, answer in part]
            yield numbers, _along(chosen, [answers[answer][1] for answer in numbers]), rows.head


def _along(rows: Rows, answers: Sequence[Ids]) -> Tensor:
    """The states before each token of B answers, (K, B, T, hidden)."""
    ids, mask = padded([answer[:-1] for answer in answers], rows.mask.device, "right")
    first = rows.states[:, :, None]
    return torch.cat([first, rows.extend(ids, mask)], 2) if ids.shape[1] else first


@torch.no_grad()
def token_logliks(states: Tensor, answers: Sequence[Ids], head: Head) -> list[Tensor]:
    """Log-probabilities of every token of B answers under each member, (K, T) each, float64."""
    targets, mask = padded(answers, states.device, "right")
    is_token = mask.bool().expand(len(states), -1, -1)
    found = head.target_logprobs(states[is_token], targets.expand(len(states), -1, -1)[is_token])
    by_member = found.view(len(states), -1).double().cpu()
    return list(by_member.split([len(answer) for answer in answers], 1))


def mixture_loglik(token_loglik: Tensor, log_weights: Tensor, rule: WeightsRule) -> float:
    """The log-probability of an answer under the mixture that is served, from its tokens' (K, T)."""
    if rule == "fixed":
        return mixture_logprobs(token_loglik, log_weights).sum().item()
    return sequence_loglik(log_weights, token_loglik.sum(1)).item()


@torch.no_grad()
def trace_of(
    states: Tensor, answer: Ids, head: Head, log_weights: Tensor, rule: WeightsRule
) -> list[TokenUncertainty]:
    """The tokens of one answer with the numbers that they would have had if they had been drawn.

    Args:
        states: (K, T, hidden), before each token. log_weights: (K,), prior.
    """
    tokens = torch.tensor(answer, device=states.device)
    prior = log_weights.to(states.device)
    before, found = torch.zeros_like(prior), list[TokenUncertainty]()
    size = max(1, head.positions_at_once // (4 * len(states)))
    for part, targets in zip(states.split(size, 1), tokens.split(size), strict=True):
        logits = head.logits(part.flatten(0, 1)).unflatten(0, part.shape[:2])
        logprobs = logits.log_softmax(-1).transpose(0, 1)
        chosen = logprobs.gather(-1, targets[:, None, None].expand(-1, len(states), 1))[..., 0].T.double()
        weights = prefix_log_weights(prior + before, chosen).T if rule == "prefix_posterior" else prior
        found += records(targets, logprobs, predict(logprobs, weights.expand(len(targets), -1)))
        before += chosen.sum(1)
    return found


def records(tokens: Tensor, logprobs: Tensor, predictive: Predictive) -> list[TokenUncertainty]:
    """N tokens (N,) as they are told, from the members' (N, K, V) and the mixture's (N, V) log-probabilities."""
    chosen = tokens[:, None, None].expand(-1, logprobs.shape[1], 1)
    assert predictive.member_choices is not None
    columns = {
        "token_id": tokens,
        "log_prob": predictive.logprobs.gather(-1, tokens[:, None])[:, 0],
        "total_entropy": predictive.total_entropy,
        "aleatoric_entropy": predictive.aleatoric_entropy,
        "epistemic": predictive.epistemic,
        "disagreement": predictive.disagreement,
    }
    told = {name: column.tolist() for name, column in columns.items()}
    members = logprobs.gather(-1, chosen)[..., 0].tolist()
    choices = predictive.member_choices.tolist()
    return [
        TokenUncertainty(
            **{name: column[number] for name, column in told.items()},
            member_log_probs=tuple(members[number]),
            member_choices=tuple(choices[number]),
        )
        for number in range(len(tokens))
    ]
