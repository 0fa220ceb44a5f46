"""How large one request may be: what its body says of it, and what it would ask of the engine.

In: limits, and a body's fields or the engine's numbers. Out: nothing, or an error that names the field and the limit.
Fields are looked at by their names, on whatever route: a body that has one means the same by it everywhere. What only a
tokenizer or vLLM knows of a request is looked at where the engine is asked. Knows no HTTP.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from softspec.engine.asked import Asked
from softspec.errors import FieldError
from softspec.server.access.settings import RequestLimits

Json = Mapping[str, Any]
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_NO_OPTIONS = 2
"""Options of a question that names none: it is a predicate's yes and no."""


def require_small_body(limits: RequestLimits, body: bytes) -> None:
    """Raise if the fields of a body ask for too much; what is no JSON object is for the route to refuse.

    Raises:
        FieldError: they do.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return
    if not isinstance(fields, dict):
        return
    for field, limit, what, count in _COUNTED:
        _require(field, count(fields.get(field)), what, limit, limits)
    _require_few_choices(limits, fields)
    if limits.max_output_tokens is not None:
        _require_few_tokens(limits.max_output_tokens, fields, "")
        if isinstance(inner := fields.get("sampling_params"), dict):
            _require_few_tokens(limits.max_output_tokens, inner, "sampling_params.")


def most_tokens(limits: RequestLimits, asked: Asked) -> int | None:
    """The most tokens that each choice may have of what is asked of the engine; None for as many as it can.

    Raises:
        FieldError: it is too much.
    """
    _require("n", asked.num_choices, "choices", "max_choices", limits)
    _require("top_logprobs", asked.num_top_logprobs, "likeliest tokens", "max_top_logprobs", limits)
    _require("structured_outputs", asked.grammar_chars, "characters", "max_grammar_chars", limits)
    _require("prompt", asked.num_prompt_tokens, "tokens", "max_prompt_tokens", limits)
    if limits.max_output_tokens is None or asked.num_choices == 0:
        return None
    return max(limits.max_output_tokens // asked.num_choices, 1)


def _require(field: str, found: int, what: str, limit: str, limits: RequestLimits) -> None:
    most = getattr(limits, limit)
    if most is not None and found > most:
        raise FieldError(
            field, f"'{field}' asks for {found} {what}: this server takes at most {most} ({limit})"
        )


def _require_few_choices(limits: RequestLimits, fields: Json) -> None:
    width = max(_number(fields.get("n")), _number(fields.get("best_of")), 1)
    prompts = max(map(_num_prompts, map(fields.get, ("prompt", "prompt_embeds", "items", "messages"))))
    field = (
        "n" if width > 1 else next((name for name in ("prompt", "items", "messages") if name in fields), "n")
    )
    _require(field, width * prompts, "choices", "max_choices", limits)


def _require_few_tokens(most: int, fields: Json, place: str) -> None:
    width = max(_number(fields.get("n")), 1)
    for name in _MAX_TOKENS:
        if (found := _number(fields.get(name)) * width) > most:
            of_all = f" times {width} choices" if width > 1 else ""
            raise FieldError(
                place + name,
                f"'{place}{name}'{of_all} asks for {found} tokens: this server takes at most {most} "
                "(max_output_tokens)",
            )
    if fields.get("use_beam_search") and not any(map(fields.get, _MAX_TOKENS)):
        raise FieldError(
            "max_tokens", f"'max_tokens' is missing beside 'use_beam_search': expected at most {most}"
        )


def _num_prompts(given: object) -> int:
    """How many prompts, items or conversations there are; one of them alone may be a list of tokens or messages."""
    if not isinstance(given, list):
        return 1
    is_one = all(isinstance(each, int | dict) for each in given)
    return 1 if is_one else len(given)


def _num_items(given: object) -> int:
    return len(given) if isinstance(given, list) else 0


def _num_messages(given: object) -> int:
    if not isinstance(given, list):
        return 0
    return sum(len(each) if isinstance(each, list) else 1 for each in given)


def _num_options(given: object) -> int:
    if not isinstance(given, list):
        return 0
    named = (each.get("choices") or each.get("levels") for each in given if isinstance(each, dict))
    return sum(len(each) if isinstance(each, list) else _NO_OPTIONS for each in named)


def _number(given: object) -> int:
    """A number as routes read it, which take text and fractions for some; 0 for what they will refuse."""
    if isinstance(given, int):
        return given
    try:
        return int(float(given)) if isinstance(given, float | str) else 0
    except (ValueError, OverflowError):
        return 0


_COUNTED: tuple[tuple[str, str, str, Callable[[object], int]], ...] = (
    ("messages", "max_messages", "messages", _num_messages),
    ("input", "max_messages", "messages", _num_items),
    ("answers", "max_answers", "answers", _num_items),
    ("questions", "max_options", "options", _num_options),
)
"""Field -> the limit, what is counted, and how."""
