"""Comparing the engine's tokens with the reference decoder's."""

from softspec.maths.answer import TokenUncertainty

NUMBERS = (
    "log_prob",
    "total_entropy",
    "aleatoric_entropy",
    "epistemic",
    "disagreement",
)
TOLERANCE = 1e-3
"""Nats."""


def largest_difference(found: list[TokenUncertainty], expected: list[TokenUncertainty]) -> float:
    """The tokens must be the same; returns how far any of their numbers are apart."""
    assert [token.token_id for token in found] == [token.token_id for token in expected]
    return max(
        abs(a - b)
        for one, other in zip(found, expected, strict=True)
        for a, b in [
            *((getattr(one, name), getattr(other, name)) for name in NUMBERS),
            *zip(one.member_log_probs, other.member_log_probs, strict=True),
        ]
    )
