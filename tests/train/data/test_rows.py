"""Training data: which tokens are the prompt, which are supervised, and which lines are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from softspec.errors import DataError
from softspec.train.data.reading import Reading, read_examples
from softspec.train.data.sources import read_rows
from softspec.train.data.units import Example
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_training import write_rows

QUESTION = {"role": "user", "content": "Where is it?"}
ANSWER = {"role": "assistant", "content": "In Rome."}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def load_one(folder: Path, tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> Example:
    """The only example of a file with one row."""
    path = write_rows(folder / "rows.jsonl", [row])
    return next(read_examples(read_rows(str(path)), Reading(tokenizer, {tokenizer.eos_token_id}, 200)))


def test_prompt_ids_are_those_of_the_chat_template_at_serving_time(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Train and serve must agree token by token, or the adapters act on other text than they learnt."""
    turns = [{"role": "system", "content": "Be brief."}, QUESTION, ANSWER, QUESTION, ANSWER]

    example = load_one(tmp_path, tokenizer, {"messages": turns})

    served = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
    assert list(example.prompt_ids) == served


def test_the_answer_and_its_end_of_turn_token_are_supervised_and_nothing_after(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    example = load_one(tmp_path, tokenizer, {"messages": [QUESTION, ANSWER]})

    assert tokenizer.decode(example.completion_ids) == "In Rome.<|im_end|>"


def test_a_prompt_and_completion_of_messages_equal_one_conversation(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    pair = load_one(tmp_path, tokenizer, {"prompt": [QUESTION], "completion": [ANSWER]})

    assert pair == load_one(tmp_path, tokenizer, {"messages": [QUESTION, ANSWER]})


def test_text_is_used_without_the_chat_template(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    example = load_one(tmp_path, tokenizer, {"prompt": "2 + 2 =", "completion": " 4"})

    assert tokenizer.decode(example.prompt_ids) == "2 + 2 ="
    assert tokenizer.decode(example.completion_ids) == " 4<|im_end|>"


def test_only_the_last_assistant_turn_is_supervised(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    turns = [QUESTION, {"role": "assistant", "content": "First."}, QUESTION, ANSWER]

    example = load_one(tmp_path, tokenizer, {"messages": turns})

    assert "First." in tokenizer.decode(example.prompt_ids)
    assert tokenizer.decode(example.completion_ids) == "In Rome.<|im_end|>"


def test_the_source_is_kept_and_other_keys_are_ignored(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = {"messages": [QUESTION, ANSWER], "source": 7, "kind": "conflict"}

    assert load_one(tmp_path, tokenizer, row).source == "7"


def test_a_group_and_a_weight_are_kept(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "a", "completion": "b"}

    plain = load_one(tmp_path, tokenizer, row)
    marked = load_one(tmp_path, tokenizer, {**row, "group": 3, "weight": 2})

    assert (plain.bundle, plain.weight) == (None, 1.0)
    assert (marked.bundle, marked.weight) == ("3", 2.0)


def test_votes_give_an_example_for_each_option_that_has_some(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    votes = {"yes": 3, "no": 1, "maybe": 0}
    path = write_rows(
        tmp_path / "rows.jsonl",
        [{"prompt": [QUESTION], "votes": votes, "source": "A", "group": 7, "weight": 2}],
    )

    yes, no = read_examples(read_rows(str(path)), Reading(tokenizer, {tokenizer.eos_token_id}, 200))

    assert tokenizer.decode(yes.completion_ids) == "yes<|im_end|>"
    assert tokenizer.decode(no.completion_ids) == "no<|im_end|>"
    assert yes.prompt_ids == no.prompt_ids
    assert (yes.source, yes.bundle) == (no.source, no.bundle) == ("A", "7")
    assert (yes.weight, no.weight) == (1.5, 0.5)


def test_a_unanimous_vote_is_an_ordinary_example(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    voted = load_one(tmp_path, tokenizer, {"prompt": "2 + 2 =", "votes": {" 4": 5}})

    assert voted == load_one(tmp_path, tokenizer, {"prompt": "2 + 2 =", "completion": " 4"})


def test_blank_lines_are_skipped(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps({"prompt": "a", "completion": "b"}) + "\n\n", encoding="utf-8")

    assert len(list(read_examples(read_rows(str(path)), Reading(tokenizer, {2}, 10)))) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [', "not JSON"),
        ("[1, 2]", "found a list, expected an object"),
        ("{}", "expected either 'messages' or 'prompt' with 'completion'"),
        ('{"prompt": "a"}', "expected both 'prompt' and 'completion'"),
        ('{"prompt": "a", "completion": " "}', "empty completion"),
        ('{"prompt": "", "completion": "b"}', "empty prompt"),
        ('{"prompt": "a", "completion": "b", "weight": 0}', "weight: expected a number greater than 0"),
        ('{"prompt": "a", "completion": "b", "weight": Infinity}', "weight: expected a finite number"),
        ('{"prompt": "a", "completion": "b", "group": [1]}', "group: expected text"),
        ('{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}', "both be text or both"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "expected at least one message and then"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "expected at least one message and then"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}',
            "empty completion",
        ),
        (
            '{"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}',
            "expected text as 'content'",
        ),
        ('{"prompt": "a", "votes": {}}', "at least one option in 'votes' with more than 0 votes"),
        ('{"prompt": "a", "votes": {"b": 0}}', "at least one option in 'votes' with more than 0 votes"),
        ('{"prompt": "a", "votes": {"b": -1}}', "votes.b: expected a number of at least 0"),
        ('{"prompt": "a", "votes": {"b": NaN}}', "votes.b: expected a finite number"),
        ('{"prompt": "a", "votes": ["b"]}', "votes: expected an object"),
        ('{"prompt": "a", "votes": {" ": 1}}', "votes: empty completion"),
        ('{"prompt": [], "votes": {"b": 1}}', "votes: expected at least one message and then"),
        ('{"votes": {"b": 1}}', "prompt: missing"),
        ('{"prompt": "a", "completion": "b", "votes": {"b": 1}}', "expected 'votes' with 'prompt' alone"),
        (
            json.dumps({"prompt": "a" * 50, "completion": "b"}),
            "1 of 2 rows is longer than max_length 50, the longest has 52 tokens",
        ),
        (json.dumps({"prompt": "a", "completion": "b" * 50}), "is longer than max_length 50"),
    ],
)
def test_a_bad_line_is_refused_with_its_file_and_number(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, line: str, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n", encoding="utf-8")

    with pytest.raises(DataError) as error:
        list(read_examples(read_rows(str(path)), Reading(tokenizer, {tokenizer.eos_token_id}, 50)))

    assert f"{path}:2" in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_empty_file_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "empty.jsonl").touch()

    with pytest.raises(DataError, match="No such file"):
        list(read_examples(read_rows(str(tmp_path / "missing.jsonl")), Reading(tokenizer, {2}, 50)))
    with pytest.raises(DataError, match="no examples found"):
        list(read_examples(read_rows(str(tmp_path / "empty.jsonl")), Reading(tokenizer, {2}, 50)))


def test_a_template_that_rewrites_the_prompt_is_refused(tmp_path: Path) -> None:
    """Training on a prompt that the server never sends would go unnoticed."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    )

    with pytest.raises(DataError, match="renders the prompt differently"):
        load_one(tmp_path, tokenizer, {"messages": [QUESTION, ANSWER]})


def test_a_base_without_a_template_asks_for_text(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None

    with pytest.raises(DataError, match="no chat template"):
        load_one(tmp_path, tokenizer, {"messages": [QUESTION, ANSWER]})


def test_a_token_that_would_merge_across_the_edge_stays_apart(tmp_path: Path) -> None:
    """The server tokenises the prompt by itself, so the prompt's last token must not swallow the answer's first."""
    plain = tiny_tokenizer()
    state = json.loads(plain.backend_tokenizer.to_str())
    state["model"]["vocab"]["ĊI"] = state["model"]["vocab"].pop("filler0")
    state["model"]["merges"] = [["Ċ", "I"]]
    merging = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>"
    )
    merging.chat_template = plain.chat_template

    example = load_one(tmp_path, merging, {"messages": [QUESTION, ANSWER]})

    assert example == load_one(tmp_path, plain, {"messages": [QUESTION, ANSWER]})
