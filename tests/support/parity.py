"""Asking the engine and the reference decoder the same, and comparing their tokens."""

from collections.abc import Mapping

import torch

from softspec.maths.answer import TokenUncertainty
from softspec.reference import ReferenceEnsemble

NUMBERS = (
    "log_prob",
    "total_entropy",
    "aleatoric_entropy",
    "epistemic",
    "disagreement",
)
TOLERANCE = 1e-3
"""Nats."""


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random bytes of the tiny tokenizer; the same for the same arguments."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(3, 259, (length,), generator=generator).tolist()


def reference_of(references: Mapping[str, ReferenceEnsemble], model: str) -> ReferenceEnsemble:
    """The decoder of an ensemble, or of one of its members."""
    name, _, member = model.partition("/member-")
    return references[name].member(int(member)) if member else references[name]


def base_greedy(reference: ReferenceEnsemble, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens of the base, which the reference holds under its adapters."""
    ids = list(ids)
    with torch.no_grad(), reference.model.disable_adapter():
        for _ in range(count):
            ids.append(int(reference.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def largest_difference(found: list[TokenUncertainty], expected: list[TokenUncertainty]) -> float:
    """The tokens must be the same; returns how far any of their numbers are apart."""
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.token_id == other.token_id, f"token {place} is {one}, expected {other}"
    return max(
        abs(a - b)
        for one, other in zip(found, expected, strict=True)
        for a, b in [
            *((getattr(one, name), getattr(other, name)) for name in NUMBERS),
            *zip(one.member_log_probs, other.member_log_probs, strict=True),
        ]
    )
