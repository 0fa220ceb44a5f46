"""Tokens of three members with numbers drawn at random."""

import math
import random

from softspec.maths.answer import TokenUncertainty

PRIOR = (math.log(0.5), math.log(0.3), math.log(0.2))


def random_tokens(seed: int, count: int) -> list[TokenUncertainty]:
    draw = random.Random(seed)
    return [
        TokenUncertainty(
            token_id=draw.randrange(100),
            log_prob=-draw.random(),
            total_entropy=draw.random(),
            aleatoric_entropy=draw.random(),
            epistemic=draw.random(),
            disagreement=draw.random(),
            member_log_probs=tuple(-3 * draw.random() for _ in PRIOR),
        )
        for _ in range(count)
    ]
