"""What pydantic complains of, in one line.

In: a validation error. Out: the text for a message to the user. Knows none of the models.
"""

import json

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """The first complaint of a pydantic error, in one line with the field's path."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    shown = json.dumps(problem["input"], default=str)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    prefix = f"{field}: " if field else ""
    message = problem["msg"].removeprefix("Value error, ")
    return f"{prefix}{message} (found {shown})"
