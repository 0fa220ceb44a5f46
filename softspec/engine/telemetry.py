"""The numbers of a token, in extra columns of the log-probability row that vLLM sends with it.

A row for a request that wants the top n: the drawn token, the n likeliest tokens, then `NUM_FIXED + K` numbers.
They arrive with the token, in order, through any executor, with no side channel. Out: `TokenUncertainty`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from softspec.uncertainty import Predictive, TokenUncertainty

NUM_FIXED = 5


def num_columns(num_members: int) -> int:
    """How many log-probability columns the telemetry of K members takes."""
    return NUM_FIXED + num_members


def pack(predictive: Predictive, token_logprobs: Tensor) -> Tensor:
    """(G, NUM_FIXED + K) from the (G,) numbers of a decode step and the drawn token's (G, K) log-probabilities."""
    fixed = (
        predictive.total_entropy,
        predictive.aleatoric_entropy,
        predictive.epistemic,
        predictive.token_disagreement,
        predictive.disagreement,
    )
    return torch.cat([torch.stack(fixed, -1), token_logprobs], -1)


def unpack(token_id: int, log_prob: float, columns: Sequence[float]) -> TokenUncertainty:
    """The inverse of `pack` for one row."""
    total, aleatoric, epistemic, token_disagreement, disagreement = columns[:NUM_FIXED]
    return TokenUncertainty(
        token_id=token_id,
        log_prob=log_prob,
        total_entropy=total,
        aleatoric_entropy=aleatoric,
        epistemic=epistemic,
        token_disagreement=token_disagreement,
        disagreement=disagreement,
        member_log_probs=tuple(columns[NUM_FIXED:]),
    )
