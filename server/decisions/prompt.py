"""The words in which the members are asked, and those in which they would answer.

In: a checked request. Out: chat messages for each question, and the texts of its options. Knows no tokens, no engine
and no HTTP.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from softspec.errors import FieldError
from softspec.server.chat.wire import Json
from softspec.server.decisions.request import (
    ChoiceQuestion,
    Data,
    DecisionRequest,
    Item,
    Message,
    Part,
    PredicateQuestion,
    Question,
    Refusal,
    Said,
    Text,
)


@dataclass(frozen=True)
class Option:
    """One answer that a question allows: what the assistant would say, and what it means.

    `place` is its path in the request, below its question.
    """

    text: str
    description: str | None = None
    place: str = ""


YES_NO = (Option("yes"), Option("no"))


def options_of(question: Question) -> tuple[Option, ...]:
    """The options of a question, in the order of the request."""
    if isinstance(question, PredicateQuestion):
        return YES_NO
    if isinstance(question, ChoiceQuestion):
        return tuple(
            Option(_said(choice.value), choice.description, f"choices.{number}")
            for number, choice in enumerate(question.choices)
        )
    return tuple(
        Option(level.label, level.description, f"levels.{number}")
        for number, level in enumerate(question.levels)
    )


def messages_of(request: DecisionRequest, number: int) -> list[Json]:
    """The chat in which a question of the request is asked: its input, and after it the question.

    The input comes first, so that all questions of a request begin with the same tokens.

    Raises:
        FieldError: there is nothing to ask, or a description that would not be shown.
    """
    question = request.questions[number]
    if not request.list_options:
        _refuse_hidden(question, number)
    asked = _paragraphs(_text(question.instructions), *(_listing(question) if request.list_options else ()))
    messages = _input_messages(request.input)
    if messages and messages[-1]["role"] == "user":
        last = messages.pop()
        asked = _paragraphs(last["content"], asked)
    if not asked and not messages:
        raise FieldError("input", "there is nothing to ask: give 'input' or 'instructions' some text")
    return [*messages, {"role": "user", "content": asked}] if asked else messages


def _listing(question: Question) -> tuple[str, ...]:
    """The paragraphs that name the options of a question and ask for one of them."""
    if isinstance(question, PredicateQuestion):
        return ("Answer with yes or no only.",)
    lines = "\n".join(
        f"- {option.text}: {option.description}" if option.description else f"- {option.text}"
        for option in options_of(question)
    )
    if isinstance(question, ChoiceQuestion):
        return f"Options:\n{lines}", "Answer with one option only."
    return f"Levels, from the lowest to the highest:\n{lines}", "Answer with one level only."


def _refuse_hidden(question: Question, number: int) -> None:
    """Refuse descriptions where options are not listed."""
    for option in options_of(question):
        if option.description:
            path = f"questions.{number}.{option.place}.description"
            raise FieldError(
                path, f"{path} would not be shown, as 'list_options' is false: leave one of them out"
            )


def _input_messages(content: str | Sequence[Item]) -> list[Json]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    # Many chat templates know no developers, and leave out what they say.
    return [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": _text(message.content),
        }
        for message in content
        if isinstance(message, Message)  # all of them, once the request was checked
    ]


def _text(content: str | Sequence[Part]) -> str:
    """The text of a content; its parts are lines of their own."""
    return content if isinstance(content, str) else "\n".join(map(_text_of_part, content))


def _text_of_part(part: Part) -> str:
    if isinstance(part, Data):
        return json.dumps(part.data, ensure_ascii=False)
    if isinstance(part, Refusal):
        return part.refusal
    assert isinstance(part, Text | Said)
    return part.text


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _said(value: str | bool) -> str:
    return value if isinstance(value, str) else str(value).lower()
