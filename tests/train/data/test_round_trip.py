"""Random rows over tokenizers and templates of many families: what is trained is what would be served and was given.

The oracles are the tokenizer's own `apply_chat_template` and its decoder, and the text of the row.
"""

import random
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from softspec.errors import DataError
from softspec.train.data.reading import Reading, read_examples
from softspec.train.data.units import Example
from tests.support.chat_families import FAMILIES, Family

FAST_ROWS = 20
ALL_ROWS = 1200
LINE = (
    "Yes no 4 2+2= Rome answer naïve Straße 東京 مرحبا שלום 🎉 👩‍👩‍👧‍👦 e\u0301 ﬁ \u200b 0123456789 {} "
    '{"a":[1,"b"]} <b> </s <| . , : | \'s " \\n ▁ Ġ <0x0A>'
)
SPACES = (" ", "  ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u2028", " the answer is ", "x" * 40)
SCRAPS = (*LINE.split(" "), *SPACES)

OPENINGS = ("", "<think></think>", "<think>", "[text]")
"""What templates put between a prompt and an answer."""


def text(draw: random.Random, family: Family, least: int = 0, specials: float = 0.05) -> str:
    """Random text, now and then with the text of a special token in it."""
    names = [str(each) for each in family.tokenizer().get_added_vocab()]
    return "".join(
        draw.choice(names) if draw.random() < specials else draw.choice(SCRAPS)
        for _ in range(draw.randint(least, 12))
    )


def said(draw: random.Random, family: Family, specials: float = 0.05) -> str:
    """Random text that is not only white space."""
    return next(found for _ in range(1000) if (found := text(draw, family, 1, specials)).strip())


def tool(draw: random.Random) -> dict[str, Any]:
    """A tool as a server passes it on, all its keys in order."""
    parameters = {"type": "object", "properties": {draw.choice("abc"): {"type": "string"}}}
    function = {
        "name": f"tool_{draw.choice('xyz')}",
        "description": draw.choice(["What", "é"]),
        "parameters": parameters,
    }
    return {"type": "function", "function": function}


def call(draw: random.Random, family: Family) -> dict[str, Any]:
    """A turn of the assistant that calls a tool."""
    function = {"name": f"tool_{draw.choice('xyz')}", "arguments": {draw.choice("abc"): text(draw, family)}}
    calls = [{"id": "call00001", "type": "function", "function": function}]
    return {"role": "assistant", "content": draw.choice([None, ""]), "tool_calls": calls}


def conversation(draw: random.Random, family: Family) -> dict[str, Any]:
    """A random row of messages that the family's template takes."""
    turns: list[dict[str, Any]] = []
    while family.systems and draw.random() < 0.3 and len(turns) < 3:
        turns.append({"role": "system", "content": said(draw, family)})
    rounds = draw.randint(1, 3)
    for _ in range(rounds):
        turns.append({"role": "user", "content": text(draw, family)})
        if family.systems and draw.random() < 0.1:
            turns.append({"role": "user", "content": text(draw, family)})
        if family.tools and draw.random() < 0.3:
            turns += [
                call(draw, family),
                {"role": "tool", "content": text(draw, family), "tool_call_id": "call00001"},
            ]
        turns.append({"role": "assistant", "content": said(draw, family)})
    if family.thinks or ("</think>" in family.template and draw.random() < 0.3):
        thought = draw.choice(["", "<think>\n", "<think>"]) + said(draw, family).strip()
        turns[-1]["content"] = thought + "</think>\n\nso."
    if family.tools and draw.random() < 0.2:
        turns[-1] = call(draw, family)
    row: dict[str, Any] = {"messages": turns}
    if draw.random() < 0.3:
        row = {"prompt": turns[:-1], "completion": turns[-1:]}
    if family.tools and draw.random() < 0.5:
        row["tools"] = [tool(draw) for _ in range(draw.randint(1, 2))]
    return row


def plain(draw: random.Random, family: Family) -> dict[str, Any]:
    """A random row of text, whose edge may be anywhere."""
    return {"prompt": said(draw, family, 0.02), "completion": said(draw, family, 0.0)}


@cache
def reading(family: Family) -> Reading:
    return Reading(family.tokenizer(), family.stop_ids, 100_000, tell=lambda line: None)


def read(family: Family, row: dict[str, Any]) -> Example:
    (example,) = read_examples([("row", row)], reading(family))
    return example


def as_served(turn: dict[str, Any], family: Family) -> dict[str, Any]:
    """A turn as the server gives it to the template: no null, and parts where the template loops over them."""
    content = turn["content"] or ""
    shown: Any = [{"type": "text", "text": content}] if "for part in" in family.template else content
    return {**turn, "content": shown}


def squeezed(found: str) -> str:
    """Without white space, as SentencePiece's mark for it reads in a text, too."""
    return "".join(found.replace("▁", " ").split())


def decode(tokenizer: PreTrainedTokenizerFast, ids: Any) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def check_conversation(family: Family, row: dict[str, Any]) -> None:
    tokenizer, example = family.tokenizer(), read(family, row)
    turns = [as_served(turn, family) for turn in row.get("messages") or row["prompt"] + row["completion"]]
    clock = {"date_string": example_date(tokenizer, example)} if "date_string" in family.template else {}
    tools = {"tools": row.get("tools"), **clock}

    served = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False, **tools)
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, tokenize=False, **tools)
    whole = tokenizer.apply_chat_template(turns, tokenize=False, **tools)
    learnt = decode(tokenizer, example.completion_ids)
    both = decode(tokenizer, [*example.prompt_ids, *example.completion_ids])
    end = decode(tokenizer, example.completion_ids[-1:])
    answer = turns[-1]["content"]
    answer = answer[0]["text"] if isinstance(answer, list) else answer

    assert list(example.prompt_ids) == served
    assert example.completion_ids[-1] in family.stop_ids
    if turns[-1].get("tool_calls"):
        assert '"tool_' in learnt
    elif whole.startswith(prompt) and squeezed(answer) in squeezed(whole[len(prompt) :]):
        shown = whole[: len(prompt) + len(whole[len(prompt) :].rstrip())]
        known = decode(tokenizer, tokenizer(shown, add_special_tokens=False)["input_ids"])
        assert known.startswith(both) or whole.startswith(both)
        if decode(tokenizer, tokenizer(whole, add_special_tokens=False)["input_ids"]) == whole:
            assert whole.startswith(both)
    if family.keeps_text and not turns[-1].get("tool_calls"):
        given = (
            squeezed(answer.removeprefix("<think>")) if "</think>" in family.template else squeezed(answer)
        )
        assert squeezed(learnt).endswith(given + squeezed(end))
        # Before the answer there may be what the template opens it with, and behind it only the first end.
        assert squeezed(learnt).removesuffix(given + squeezed(end)) in OPENINGS


def example_date(tokenizer: PreTrainedTokenizerFast, example: Example) -> str:
    """The date that the reader saw, which is that of the moment."""
    return decode(tokenizer, example.prompt_ids).partition("Today Date: ")[2][:20]


def check_plain(family: Family, row: dict[str, Any]) -> None:
    tokenizer, example = family.tokenizer(), read(family, row)
    begins = bool(tokenizer.bos_token) and row["prompt"].startswith(tokenizer.bos_token)

    served = tokenizer(row["prompt"], add_special_tokens=not begins)["input_ids"]
    both = [*served, *example.completion_ids[:-1]]
    text = row["prompt"] + row["completion"]
    together = tokenizer(text, add_special_tokens=not begins)["input_ids"]

    assert list(example.prompt_ids) == served
    assert example.completion_ids[-1] == tokenizer.eos_token_id
    if family.keeps_text:
        assert decode(tokenizer, both) in {text, decode(tokenizer, together)}
    assert (
        all(token != tokenizer.unk_token_id for token in example.completion_ids[:-1]) or not family.keeps_text
    )


def rows_of(family: Family, count: int, seed: int) -> Counter[str]:
    """Check so many rows of a family; returns why rows were refused."""
    refused: Counter[str] = Counter()
    draw = random.Random(seed)
    for number in range(count):
        make, check = (plain, check_plain) if number % 4 == 0 else (conversation, check_conversation)
        row = make(draw, family)
        try:
            check(family, row)
        except DataError as error:
            refused[str(error).removeprefix("row: ")[:60]] += 1
        except AssertionError as error:
            raise AssertionError(f"row {number} of seed {seed}: {row!r}") from error
    return refused


@pytest.mark.parametrize("name", FAMILIES)
def test_random_rows_are_trained_as_they_are_served(name: str) -> None:
    assert rows_of(FAMILIES[name], FAST_ROWS, seed=1) == {}


@pytest.mark.soak
@pytest.mark.parametrize("name", FAMILIES)
def test_twenty_thousand_random_rows_are_trained_as_they_are_served(name: str) -> None:
    assert rows_of(FAMILIES[name], ALL_ROWS, seed=2) == {}


def test_there_are_as_many_rows_as_it_says() -> None:
    assert len(FAMILIES) * ALL_ROWS >= 20_000
    assert all(first != second for first, second in pairwise(FAMILIES))
