"""Commands that take ensemble directories and, behind or between them, any flag of vLLM's.

In: the arguments that are no flags of ours. Out: the directories, and what vLLM gets, unchanged and in order.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Arguments = Annotated[str, Parameter(name="ENSEMBLE_DIR", allow_leading_hyphen=True)]


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """What comes before the first flag are directories; that flag and what follows is for vLLM."""
    count = next((n for n, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    return [Path(argument) for argument in arguments[:count]], list(arguments[count:])
