"""How the members are mixed, and what is told of the tokens of their mixture.

In: members' log-probabilities. Out: records of tokens. Knows no model.
"""

from dataclasses import dataclass

from torch import Tensor

from softspec.artefact.manifest import WeightsRule
from softspec.maths.answer import TokenUncertainty
from softspec.maths.uncertainty import Predictive


@dataclass(frozen=True)
class Mixing:
    """The members' prior log-weights (K,), float64, and whether an answer's prefix updates them."""

    log_weights: Tensor
    rule: WeightsRule


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
