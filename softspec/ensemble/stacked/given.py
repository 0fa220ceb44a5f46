"""Given answers: how likely every member finds them, and what the mixture makes of each of their tokens.

In: `Rows` of prompts and answers as ids. Out: numbers on the CPU, nats. Draws nothing.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softspec.ensemble.stacked.batches import Limits
from softspec.ensemble.stacked.mixing import Mixing, records
from softspec.ensemble.stacked.rows import Ids, Rows, followed, padded
from softspec.maths.answer import TokenUncertainty
from softspec.maths.mixture import mixture_logprobs, prefix_log_weights, sequence_loglik
from softspec.maths.uncertainty import predict
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
    lengths = [(prompt, len(answer)) for prompt, answer in answers]
    for numbers, rows in followed(members, limits, prompts, lengths):
        yield numbers, _along(rows, [answers[number][1] for number in numbers]), rows.head


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


def mixture_loglik(token_loglik: Tensor, mixing: Mixing) -> float:
    """The log-probability of an answer under the mixture that is served, from its tokens' (K, T)."""
    if mixing.rule == "fixed":
        return mixture_logprobs(token_loglik, mixing.log_weights).sum().item()
    return sequence_loglik(mixing.log_weights, token_loglik.sum(1)).item()


@torch.no_grad()
def trace_of(states: Tensor, answer: Ids, head: Head, mixing: Mixing) -> list[TokenUncertainty]:
    """The tokens of one answer with the numbers that they would have had if they had been drawn.

    Args:
        states: (K, T, hidden), before each token.
    """
    tokens = torch.tensor(answer, device=states.device)
    prior = mixing.log_weights.to(states.device)
    before, found = torch.zeros_like(prior), list[TokenUncertainty]()
    size = max(1, head.positions_at_once // (4 * len(states)))
    for part, targets in zip(states.split(size, 1), tokens.split(size), strict=True):
        logits = head.logits(part.flatten(0, 1)).unflatten(0, part.shape[:2])
        logprobs = logits.log_softmax(-1).transpose(0, 1)
        chosen = logprobs.gather(-1, targets[:, None, None].expand(-1, len(states), 1))[..., 0].T.double()
        weights = prefix_log_weights(prior + before, chosen).T if mixing.rule == "prefix_posterior" else prior
        found += records(targets, logprobs, predict(logprobs, weights.expand(len(targets), -1)))
        before += chosen.sum(1)
    return found
