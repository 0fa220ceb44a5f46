"""Conversations as the server renders them: the prompt of a request, and the answer that was to follow it.

In: checked turns, tools and the base's chat template. Out: text. The conversation is normalised as vLLM's chat route
does it, so the prompt is the one that a request for it becomes. Knows no token ids but those that end an answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from softspec.artefact.answer_tokens import MARKER, first_stop
from softspec.errors import DataError
from softspec.train.data.messages import Message
from softspec.train.data.rows import LabelledRow
from softspec.train.data.served import dumped, for_template, served_tool, with_all_keys

OPEN_TAG = re.compile(r"([<\[])(\w+)([>\]])\s*$")
CLOSED_TAG = re.compile(r"[<\[]/\w+[>\]]")


@dataclass(frozen=True)
class Rendered:
    """A prompt as the server renders it, and the supervised text behind it, which ends in the text of a stop token."""

    prompt: str
    completion: str


class Chat:
    """The chat template of a base.

    Args:
        stops: the texts of the tokens at which the server stops.
        started_on: the day that a template with a clock is given; today when empty.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], started_on: date | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._day = started_on or date.today()

    def prompt(self, turns: Sequence[Message], row: LabelledRow) -> str:
        """The turns as a prompt that is to be answered.

        Raises:
            DataError: there is no template, or it refuses the conversation.
        """
        return self._render([dumped(turn) for turn in turns], row, add_generation_prompt=True)

    def rendered(self, turns: Sequence[Message], row: LabelledRow) -> Rendered:
        """The last of the turns as the answer to those before it.

        Raises:
            DataError: the template refuses the conversation, does not show all of the answer, or ends it in no token
                at which the server stops.
        """
        before = [dumped(turn) for turn in turns[:-1]]
        answer = turns[-1]
        prompt = self.prompt(turns[:-1], row)
        marked = self._render([*before, _marked(answer)], row)
        if MARKER not in marked:
            what = "tool calls" if answer.tool_calls else "answer"
            raise DataError(f"the chat template does not show the {what} of the assistant as given")
        closing, dropped = self._end(marked.rpartition(MARKER)[2])
        whole = self._render([*before, dumped(answer)], row)
        hidden = sorted(
            key
            for key, value in with_all_keys(answer).items()
            if value is not None and key not in dumped(answer)
        )
        if hidden and self._render([*before, with_all_keys(answer)], row) != whole:
            raise DataError(
                f"the chat template shows {' or '.join(hidden)} of an answer, which no request brings to it; leave it "
                "out"
            )
        completion = whole[len(prompt) : len(whole) - len(dropped)]
        if whole.startswith(prompt) and whole.endswith(closing + dropped) and _shows(completion, answer):
            return Rendered(prompt, completion)
        return Rendered(prompt, _verbatim(answer, prompt, marked.partition(MARKER)[0], whole) + closing)

    def _end(self, behind: str) -> tuple[str, str]:
        """What a template puts behind an answer, cut after the first token at which the server stops."""
        found = first_stop(behind, self._stops)
        if found is None:
            raise DataError(self._no_stop(behind))
        end = found[0] + len(found[1])
        return behind[:end], behind[end:]

    def _no_stop(self, behind: str) -> str:
        stops = ", ".join(repr(stop) for stop in sorted(self._stops)) or "nothing"
        ids = self._tokenizer(behind, add_special_tokens=False)["input_ids"]
        if not ids:
            return f"the chat template puts no token behind the answer, and the server stops at {stops}"
        token = next((each for each in ids if each in self._tokenizer.added_tokens_decoder), ids[0])
        name = self._tokenizer.convert_ids_to_tokens(token)
        return (
            f"the chat template ends the answer with {name!r}, at which the server does not stop (it stops at "
            f"{stops}); add {token} to eos_token_id in the base's generation_config.json"
        )

    def _render(
        self, messages: list[dict[str, Any]], row: LabelledRow, add_generation_prompt: bool = False
    ) -> str:
        if not self._tokenizer.chat_template:
            raise DataError("the base model has no chat template; use text 'prompt' and 'completion'")
        tools = [served_tool(each) for each in row.tools] if row.tools else None
        arguments = {
            key: value
            for key, value in (row.chat_template_kwargs or {}).items()
            if value is not None and value != "auto"  # the server takes both as unset
        }
        try:
            template = self._tokenizer.get_chat_template(None, tools=tools)
            shown = for_template(messages, template)
            text = self._tokenizer.apply_chat_template(
                shown,
                tools=tools,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                strftime_now=self._day.strftime,
                **arguments,
            )
        except Exception as error:  # it is code of the base's author, and may raise anything
            raise DataError(f"the chat template refuses this conversation: {_reason(error)}") from error
        return cast("str", text)


def _reason(error: Exception) -> str:
    """What a template objected to, in one line."""
    text = " ".join(str(error).split())
    name = "" if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: "
    return f"{name}{text}" if len(text) <= 300 else f"{name}{text[:297]}..."


def _marked(answer: Message) -> dict[str, Any]:
    """The answer with the marker where its last words are."""
    marked = dumped(answer)
    if "tool_calls" in marked:
        *others, last = marked["tool_calls"]
        function = {**last["function"], "arguments": {MARKER: MARKER}}
        return {**marked, "tool_calls": [*others, {**last, "function": function}]}
    return {**marked, "content": MARKER}


def _shows(completion: str, answer: Message) -> bool:
    """Whether a rendered answer has all that was given, white space aside."""
    names = [call.function.name for call in answer.tool_calls or ()]
    wanted = [*answer.texts, answer.reasoning or "", *names]
    shown = _squeezed(completion)
    return all(_squeezed(text) in shown for text in wanted)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _verbatim(answer: Message, prompt: str, before: str, whole: str) -> str:
    """The answer as it was given, where the template would show another one than the model is to write.

    Templates of reasoning models cut the thinking off, or open it in the prompt.

    Args:
        before: what the template shows before an answer.
        whole: what it shows of this one, with all before it.
    """
    if answer.tool_calls:
        raise DataError("the chat template does not show all of the assistant's text and tool calls")
    text = "\n".join(answer.texts)
    if _squeezed(CLOSED_TAG.split(text)[-1]) not in _squeezed(whole):
        raise DataError("the chat template does not show the answer of the assistant as given")
    if before.startswith(prompt):
        if answer.reasoning:
            raise DataError("the chat template does not show the reasoning of the answer; leave it out")
        return before[len(prompt) :] + text
    if not prompt.startswith(before):
        raise DataError(
            "the chat template renders the prompt differently once the answer follows; expected the prompt to stay as "
            "it is"
        )
    return _behind(prompt[len(before) :], text, answer.reasoning)


def _behind(opening: str, text: str, reasoning: str | None) -> str:
    """An answer behind a prompt that opens it, such as with `<think>`."""
    tag = OPEN_TAG.search(opening)
    if tag is None:
        if reasoning:
            raise DataError("the chat template does not show the reasoning of the answer; leave it out")
        return text
    opened = tag.group().strip()
    closed = f"{tag[1]}/{tag[2]}{tag[3]}"
    if text.lstrip().startswith(opened):
        text = text.lstrip().removeprefix(opened).lstrip("\n")
    if closed not in text and reasoning:
        text = f"{reasoning.strip()}\n{closed}\n\n{text}"
    if closed not in text:
        raise DataError(
            f"the prompt ends in {opened!r}, but the answer never comes to '{closed}': expected the thinking, "
            f"'{closed}' and then the answer, as 'content' or with the thinking as 'reasoning_content'; no thinking is "
            f"'{closed}' and then the answer"
        )
    return text
