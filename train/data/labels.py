"""What a row may say beside its text: names of where it comes from, how much it counts, votes.

In: values of a row. Out: annotations of its fields. A value of another kind is refused rather than taken for one of
these, and null is as if the key were not there, since a table has every key in every row.
"""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

LARGEST = 1e9
SMALLEST = 1e-30
"""Weights between these stay what they are in float32, in which losses are added."""


def _name(value: Any) -> Any:
    """Text, or a number as text: 7 and 7.0 are one name, as a table may turn one into the other."""
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, str) and not (is_number and math.isfinite(value)):
        raise ValueError("expected text or a number")
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not text.strip():
        raise ValueError("expected text that is not empty; leave the key out where there is none")
    return text


def _counted(votes: Any) -> Any:
    return {option: n for option, n in votes.items() if n is not None} if isinstance(votes, dict) else votes


Name = Annotated[str | None, BeforeValidator(_name)]
Weight = Annotated[
    float,
    BeforeValidator(lambda value: 1.0 if value is None else value),
    Field(strict=True, gt=0, allow_inf_nan=False),
    Field(ge=SMALLEST, le=LARGEST),
]
Votes = Annotated[
    dict[str, Annotated[float, Field(strict=True, ge=0, le=LARGEST, allow_inf_nan=False)]],
    BeforeValidator(_counted),
]
