"""Given answers: how likely every member finds them, and what the mixture makes of each of their tokens.

In: `Rows` of prompts and answers as ids. Out: numbers on the CPU, nats. Draws nothing.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softspec.ensemble.stacked.batches import Limits
from softspec.ensemble.stacked.mixing import Mixing, records
from softspec.ensemble.stacked.prompts import Ids, padded
from softspec.ensemble.stacked.rows import Rows, followed
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
def token_logliks(states: Tensor, answers: Sequence[tuple[int, Ids]], head: Head) -> list[Tensor]:
    """Log-probabilities of every token of B answers under each member, (K, T) each, float64.

    Answers to one prompt that begin alike have the same next predictive, whose logits are computed once: most of the
    work where there are many short options.

    Args:
        states: (K, B, T, hidden), before each token. answers: to each the number of its prompt.
    """
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    first_places, predictive_of = list[tuple[int, int]](), list[int]()
    for row, (prompt, answer) in enumerate(answers):
        for position in range(len(answer)):
            number = numbers.setdefault((prompt, tuple(answer[:position])), len(numbers))
            if number == len(first_places):
                first_places.append((row, position))
            predictive_of.append(number)
    rows, positions = torch.tensor(first_places, device=states.device).T
    different, which = states[:, rows, positions], torch.tensor(predictive_of, device=states.device)
    targets = torch.tensor([token for _, answer in answers for token in answer], device=states.device)
    found = torch.empty(len(states), len(targets), dtype=torch.float64, device=states.device)
    size = max(1, head.positions_at_once // len(states))
    for start in range(0, len(first_places), size):
        logits = head.logits(different[:, start : start + size].flatten(0, 1)).unflatten(0, (len(states), -1))
        own = ((which >= start) & (which < start + size)).nonzero()[:, 0]
        place = which[own] - start
        found[:, own] = (logits[:, place, targets[own]] - logits.logsumexp(-1)[:, place]).double()
    return list(found.cpu().split([len(answer) for _, answer in answers], 1))


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
