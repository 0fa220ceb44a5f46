"""What pydantic complains of, in one line and in the words of who wrote the input.

In: a validation error, and the content that was validated. Out: the text for a message to the user. Knows none of the
models.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from typing import Any

from pydantic import ValidationError

EXPECTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "string_too_short": "text that is not empty",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
}
"""Type of complaint -> what was expected, where pydantic's words are about Python or say less."""
LIMITS = ("gt", "ge", "lt", "le")
SAID = {"missing": "missing", "extra_forbidden": "unknown key"}
"""Type of complaint -> what is said instead."""
PREFIX = "Input should be "
MOST_SHOWN = 80


def first_problem(error: ValidationError, content: object = None) -> str:
    """The first complaint of a pydantic error, in one line with the field's path and what was found there.

    Args:
        content: what was validated, when it is at hand: the path is then made of its own keys. Without it, pydantic's
            names of a union's alternatives stand among them.
    """
    path, deepest, alternatives = _first(error, content)
    field = ".".join(as_key(part) for part in path)
    prefix = f"{field}: " if field else ""
    is_about_keys = deepest["type"] == "missing" or not path
    found = _keys(deepest["input"]) if is_about_keys else shown(deepest["input"])
    return f"{prefix}{_wish(alternatives)} (found {found})"


def place_of_first(error: ValidationError, content: object) -> str:
    """The dotted path of what `first_problem` complains of."""
    return ".".join(as_key(part) for part in _first(error, content)[0])


def unknown_key(key: str, known: Collection[str]) -> str:
    """What is said of a key that is not known: the one that was probably meant, or all that there are."""
    nearest = get_close_matches(key.replace("-", "_"), known, n=1)
    return "unknown key; " + (
        f"did you mean '{nearest[0]}'?" if nearest else f"expected one of {', '.join(known)}"
    )


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """A value of a user's as JSON on one line, cut after so many characters."""
    try:
        text = json.dumps(value, default=lambda other: f"{type(other).__name__} {other}")
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def as_key(part: object) -> str:
    """A part of a path as it is, or as JSON where it would not fit into a line."""
    text = str(part)
    return text if text.isprintable() and len(text) <= MOST_SHOWN // 2 else shown(text, MOST_SHOWN // 2)


def _first(
    error: ValidationError, content: object
) -> tuple[tuple[int | str, ...], Mapping[str, Any], list[Mapping[str, Any]]]:
    """Where the first field with a complaint has its deepest one, that complaint, and all of that place."""
    problems = [(_path(problem, content), problem) for problem in error.errors(include_url=False)]
    same_field = next(groupby(problems, key=lambda found: found[0][:1]))[1]
    by_depth = sorted(same_field, key=lambda found: -len(found[0]))
    path, deepest = by_depth[0]
    return path, deepest, [problem for other, problem in by_depth if other == path]


def _path(problem: Mapping[str, Any], content: Any) -> tuple[int | str, ...]:
    """The parts of a complaint's place that lead through the content, and the key that it lacks."""
    location = problem["loc"]
    if content is None:
        return location
    missing = location[-1:] if problem["type"] == "missing" else ()
    found = []
    for part in location[: len(location) - len(missing)]:
        is_key = isinstance(content, Mapping) and part in content
        if is_key or (isinstance(content, list | tuple) and isinstance(part, int)):
            content = content[part]
            found.append(part)
    return (*found, *missing)


def _wish(alternatives: Sequence[Mapping[str, Any]]) -> str:
    """What one alternative complains of, or what all of them expected."""
    wishes = []
    for problem in alternatives:
        limits = {name: f"{limit:.15g}" for name, limit in problem.get("ctx", {}).items() if name in LIMITS}
        expected = EXPECTED.get(problem["type"], "").format(**limits)
        message = problem["msg"].removeprefix("Value error, ")
        if not expected and not message.startswith(PREFIX):
            return SAID.get(problem["type"], message)
        wishes.append(expected or message.removeprefix(PREFIX))
    return f"expected {' or '.join(dict.fromkeys(wishes))}"


def _keys(content: object) -> str:
    """The keys of an object, as many as fit into a message."""
    if not isinstance(content, Mapping) or not content:
        return shown(content)
    names = ", ".join(as_key(key) for key in content)
    return f"the keys {names}" if len(names) <= MOST_SHOWN else f"the keys {names[: MOST_SHOWN - 3]}..."
