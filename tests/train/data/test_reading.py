"""Which turns of a row are learnt, which rows are too long, and what is made of the columns of well-known data sets."""

import json
from typing import Any

import pytest

from softspec.errors import DataError
from softspec.train.data.preferences import read_preferences
from softspec.train.data.reading import Reading, read_examples
from softspec.train.data.units import Example
from tests.support.tiny import tiny_tokenizer

HI = {"role": "user", "content": "Hi"}
FIRST = {"role": "assistant", "content": "First"}
LAST = {"role": "assistant", "content": "Last"}
TOKENIZER = tiny_tokenizer()


def placed(*rows: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"f:{number}", row) for number, row in enumerate(rows, start=1)]


def reading(max_length: int = 300, **settings: Any) -> Reading:
    return Reading(TOKENIZER, {TOKENIZER.eos_token_id}, max_length, **settings)


def read(*rows: dict[str, Any], **settings: Any) -> list[Example]:
    return list(read_examples(placed(*rows), reading(**settings)))


def answers(*rows: dict[str, Any], **settings: Any) -> list[str]:
    return [TOKENIZER.decode(example.completion_ids) for example in read(*rows, **settings)]


def test_all_turns_of_the_assistant_can_be_learnt_each_behind_what_came_before() -> None:
    turns = [HI, FIRST, HI, LAST]

    first, last = read({"messages": turns, "weight": 2, "source": "A"}, train_on="all")

    assert TOKENIZER.decode(first.completion_ids) == "First<|im_end|>"
    assert (first, last) == tuple(
        read({"messages": each, "weight": 2, "source": "A", "group": "row 0"})[0]
        for each in (turns[:2], turns)
    )


def test_turns_that_are_learnt_together_are_a_group_unless_the_row_has_one() -> None:
    conversation = {"messages": [HI, FIRST, HI, LAST]}

    found = read(conversation, conversation, {**conversation, "group": 7}, train_on="all")

    assert [example.bundle for example in found] == ["row 0", "row 0", "row 1", "row 1", "7", "7"]
    assert [example.bundle for example in read(conversation)] == [None]


def test_turns_of_the_prompt_and_a_greeting_are_not_learnt() -> None:
    assert answers({"prompt": [HI, FIRST, HI], "completion": [LAST]}, train_on="all") == ["Last<|im_end|>"]
    assert answers({"messages": [FIRST, HI, LAST]}, train_on="all") == ["Last<|im_end|>"]


def test_a_completion_of_several_turns_needs_all_to_be_learnt() -> None:
    row = {"prompt": [HI], "completion": [FIRST, HI, LAST]}

    assert answers(row, train_on="all") == ["First<|im_end|>", "Last<|im_end|>"]
    with pytest.raises(
        DataError, match="f:1: 'completion' has several messages: expected one assistant message"
    ):
        read(row)


def test_a_turn_of_weight_0_is_not_learnt() -> None:
    """OpenAI's fine-tuning format marks turns so."""
    turns = [HI, {**FIRST, "weight": 0}, HI, {**LAST, "weight": 1}]

    assert answers({"messages": turns}, train_on="all") == ["Last<|im_end|>"]
    with pytest.raises(DataError, match="every answer has the weight 0"):
        read({"messages": turns[:2]})
    with pytest.raises(DataError, match="the weight of a turn must be 0 or 1"):
        read({"messages": [HI, {**LAST, "weight": 0.5}]})


LONG = {"prompt": "a" * 50, "completion": "b"}
LONGER = {"prompt": "a", "completion": "b" * 90}
SHORT = {"prompt": "a", "completion": "b"}


def test_rows_that_are_too_long_are_counted_and_the_longest_is_named() -> None:
    with pytest.raises(DataError) as error:
        read(SHORT, LONG, LONGER, LONG, max_length=40)

    assert str(error.value) == (
        "3 of 4 rows are longer than max_length 40, the longest has 92 tokens (f:3); shorten them, raise max_length, "
        "or leave them out with long_rows: drop"
    )


def test_rows_that_are_too_long_are_left_out_when_asked_and_told() -> None:
    lines: list[str] = []

    found = read(LONG, SHORT, LONGER, max_length=40, long_rows="drop", tell=lines.append)

    assert found == read(SHORT)
    assert lines == [
        "2 of 3 rows are longer than max_length 40, the longest has 92 tokens (f:3); they are left out"
    ]


def test_a_file_of_which_no_row_is_short_enough_is_refused() -> None:
    with pytest.raises(DataError, match=r"2 of 2 rows are longer .* no row is left"):
        read(LONG, LONGER, max_length=40, long_rows="drop")


@pytest.mark.parametrize("tokens", [52, 53])
def test_a_row_may_have_as_many_tokens_as_it_says(tokens: int) -> None:
    assert len(read(LONG, max_length=tokens)) == 1


def test_a_row_must_fit_into_the_context_of_the_base() -> None:
    with pytest.raises(DataError, match="1 of 2 rows is longer than the 30 tokens of the base's context"):
        read(SHORT, LONG, context=30)


def test_votes_conversations_and_pairs_are_left_out_as_a_whole() -> None:
    votes = {"prompt": "a", "votes": {"b": 1, "b" * 90: 1}}
    conversation = {"messages": [HI, FIRST, {"role": "user", "content": "a" * 90}, LAST]}
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c" * size} for size in (90, 1)]
    settings: dict[str, Any] = {"max_length": 80, "long_rows": "drop", "tell": lambda line: None}

    assert answers(votes, SHORT, conversation, train_on="all", **settings) == ["b<|im_end|>"]
    (pair,) = read_preferences(placed(*pairs), reading(**settings))
    assert TOKENIZER.decode(pair.rejected.completion_ids) == "c<|im_end|>"


def test_a_text_prompt_beside_messages_is_their_beginning() -> None:
    """As in the most-used data sets of conversations."""
    row = {"prompt": "Hi", "prompt_id": "x", "messages": [HI, LAST]}

    assert read(row) == read({"messages": [HI, LAST]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [HI, LAST], "completion": [LAST]}, "found 'messages' beside 'completion'"),
        ({"completion": "a"}, "expected both 'prompt' and 'completion'"),
        ({"prompt": json.dumps([HI]), "completion": "b"}, "'prompt' is messages written as JSON text"),
        ({"prompt": json.dumps(HI), "completion": "b"}, "'prompt' is messages written as JSON text"),
        ({"prompt": str([HI]), "completion": "b"}, "'prompt' is messages written as JSON text"),
        ({"prompt": "a", "completion": json.dumps([LAST])}, "'completion' is messages written as JSON text"),
        ({"prompt": json.dumps([HI]), "votes": {"b": 1}}, "'prompt' is messages written as JSON text"),
        ({"messages": json.dumps([HI, LAST])}, "messages: expected a list"),
    ],
)
def test_other_forms_are_refused_with_what_to_do(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(row)


@pytest.mark.parametrize(
    "prompt", ['{"a": 1}', "[1, 2]", "[]", '{"role": "admin", "content": "x"}', "[INST] a"]
)
def test_json_that_is_no_conversation_is_text(prompt: str) -> None:
    assert len(read({"prompt": prompt, "completion": '{"role": "admin"}'})) == 1
