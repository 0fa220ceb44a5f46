"""Answers drawn from the mixture: the members of several prompts go on in lockstep, one token a pass.

In: `Rows` of prompts, seeds and how to draw. Out: tokens with their uncertainty. The same tokens as the serving engine
draws: noise is a function of seed, position and token.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from softspec.ensemble.backend import Sampling
from softspec.ensemble.stacked.mixing import Mixing, records
from softspec.ensemble.stacked.rows import Rows
from softspec.maths.answer import TokenUncertainty
from softspec.maths.mixture import mixture_logits, update_log_weights
from softspec.maths.sampling import draw_tokens
from softspec.maths.uncertainty import predict


@torch.no_grad()
def draw_answers(
    rows: Rows,
    seeds: Sequence[int],
    mixing: Mixing,
    sampling: Sampling,
    go_on: Sequence[Callable[[int], bool]],
) -> list[list[TokenUncertainty]]:
    """Draw the answers behind B sequences together, at least one token each.

    Args:
        go_on: for each sequence what is told of its tokens, and says whether the answer goes on.
    """
    device = rows.mask.device
    answers: list[list[TokenUncertainty]] = [[] for _ in seeds]
    going, own_seeds = list(range(len(seeds))), torch.tensor(seeds, device=device)
    log_weights = mixing.log_weights.to(device).expand(len(seeds), -1)
    position = 0
    while True:
        logits = (
            rows.head.logits(rows.states.flatten(0, 1)).unflatten(0, rows.states.shape[:2]).transpose(0, 1)
        )
        logprobs = logits.log_softmax(-1)
        predictive = predict(logprobs, log_weights)
        scores = mixture_logits(predictive.logprobs, log_weights, logits.logsumexp(-1))
        tokens = _drawn(scores, own_seeds, position, sampling)
        told = records(tokens, logprobs, predictive)
        for number, token in zip(going, told, strict=True):
            answers[number].append(token)
        kept = [place for place, token in enumerate(told) if go_on[going[place]](token.token_id)]
        if not kept:
            return answers
        chosen = torch.tensor(kept, device=device)
        if mixing.rule == "prefix_posterior":
            own = logprobs.gather(-1, tokens[:, None, None].expand(-1, logprobs.shape[1], 1))[..., 0]
            log_weights = update_log_weights(log_weights, own)
        if len(kept) < len(going):
            rows, log_weights, own_seeds = rows.selected(chosen), log_weights[chosen], own_seeds[chosen]
            going = [going[place] for place in kept]
        ids = tokens[chosen, None]
        rows.extend(ids, torch.ones_like(ids))
        position += 1


def _drawn(scores: Tensor, seeds: Tensor, position: int, sampling: Sampling) -> Tensor:
    """One token for each row of scores (B, V), (B,), int64."""
    size = len(scores)

    def for_all(value: float) -> Tensor:
        return torch.full((size,), value)

    return draw_tokens(
        scores,
        for_all(sampling.temperature),
        torch.full((size,), sampling.top_k),
        for_all(sampling.top_p),
        for_all(sampling.min_p),
        seeds,
        torch.full((size,), position, device=scores.device),
    )
