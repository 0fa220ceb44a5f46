"""Types of the benchmarks' flags. In: words of a command line. Out: values, or an error that names the flag."""

import re
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter, Token

from softspec.errors import ConfigError

SEVERAL_VALUES = Parameter(consume_multiple=(1, None))
"""A list may be given as `--members 4 8`."""


def _whole_number(_: type, tokens: Sequence[Token]) -> int:
    text = tokens[0].value
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is no whole number") from error


WholeNumber = Annotated[int, Parameter(converter=_whole_number)]
"""An int that is not rounded from something else."""
LayersText = Annotated[str, Parameter(metavar="all|top_third|A-B")]
"""What `parse_layers` reads."""


def parse_layers(text: str) -> tuple[int, ...] | str:
    """What `all`, `top_third` or `A-B` (both ends included) is as `layers_to_transform` of a `TrainConfig`.

    Raises:
        ConfigError: something else.
    """
    if text in ("all", "top_third"):
        return text
    ends = re.fullmatch(r"(\d{1,4})-(\d{1,4})", text, re.ASCII)
    numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else range(0)
    if not numbers:
        raise ConfigError(
            f"--layers is '{text}': expected all, top_third, or first-last counted from 0, such as 20-29"
        )
    return tuple(numbers)
