"""Types of the benchmarks' flags. In: words of a command line. Out: values, or an error that names the flag."""

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter, Token

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
