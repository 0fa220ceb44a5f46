"""Texts as token ids: no space that nobody wrote, one end, one beginning, and nothing that cannot be read back."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from softspec.errors import DataError
from softspec.train.data.reading import Reading, read_examples
from softspec.train.data.units import Example
from tests.support.chat_families import FAMILIES
from tests.support.tiny import tiny_tokenizer
from tests.support.tokenizer_families import byte_level, sentencepiece

LLAMA2 = FAMILIES["llama-2-always"].tokenizer()
QUESTION = {"role": "user", "content": "Where?"}


def read(tokenizer: PreTrainedTokenizerFast, *rows: dict[str, Any], **settings: Any) -> list[Example]:
    stops = settings.pop("stop_ids", {tokenizer.eos_token_id})
    reading = Reading(tokenizer, stops, 200, **settings)
    return list(read_examples([(f"f:{number}", row) for number, row in enumerate(rows, start=1)], reading))


def told(tokenizer: PreTrainedTokenizerFast, *rows: dict[str, Any], **settings: Any) -> list[str]:
    lines: list[str] = []
    read(tokenizer, *rows, tell=lines.append, **settings)
    return lines


@pytest.mark.parametrize("prefix", ["always", "first", "never"])
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("2+2=", "4"),
        ("Is it so? Answer:", " Yes"),
        ("a ", "b"),
        ("a\n", "\nb"),
        ("a", "  b "),
        ("(", ")"),
        ("", "a"),
    ],
)
def test_no_space_is_learnt_that_nobody_wrote(prefix: str, prompt: str, completion: str) -> None:
    """SentencePiece puts a space before every text that is tokenised by itself."""
    tokenizer = sentencepiece(prefix)

    (example,) = read(tokenizer, {"prompt": prompt, "completion": completion})

    together = tokenizer(prompt + completion)["input_ids"]
    assert list(example.prompt_ids) == tokenizer(prompt)["input_ids"]
    both = [*example.prompt_ids, *example.completion_ids[:-1]]
    assert tokenizer.decode(both, clean_up_tokenization_spaces=False) == tokenizer.decode(
        together, clean_up_tokenization_spaces=False
    )


def test_votes_and_conversations_of_a_sentencepiece_base_have_no_space_of_their_own() -> None:
    vicuna = FAMILIES["vicuna-always"].tokenizer()

    (voted,) = read(LLAMA2, {"prompt": "2+2=", "votes": {"4": 1}})
    (said,) = read(vicuna, {"messages": [QUESTION, {"role": "assistant", "content": "Yes"}]})

    assert LLAMA2.decode(voted.completion_ids) == "4</s>"
    whole = vicuna.apply_chat_template(
        [QUESTION, {"role": "assistant", "content": "Yes"}], return_dict=False, tokenize=False
    )
    joint = vicuna(whole, add_special_tokens=False)["input_ids"]
    assert vicuna.decode([*said.prompt_ids, *said.completion_ids]) == vicuna.decode(
        joint[: joint.index(vicuna.eos_token_id) + 1]
    )


def test_a_second_beginning_is_left_out_and_told() -> None:
    row = {"prompt": "<s>[INST] Hi [/INST]", "completion": " Yes"}

    (example,) = read(LLAMA2, row)

    assert list(example.prompt_ids) == LLAMA2(row["prompt"], add_special_tokens=False)["input_ids"]
    assert example.prompt_ids.count(LLAMA2.bos_token_id) == 1
    (line,) = told(LLAMA2, row, row)
    assert "begins with '<s>' itself" in line
    assert "(2 times, first at f:1)" in line


def test_a_beginning_that_the_tokenizer_does_not_add_is_kept_twice() -> None:
    gpt2 = FAMILIES["zephyr-gpt-2"].tokenizer()

    (example,) = read(gpt2, {"prompt": "<|endoftext|><|endoftext|>a", "completion": "b"})

    assert example.prompt_ids.count(gpt2.eos_token_id) == 2


@pytest.mark.parametrize("end", ["</s>", "</s>\n", " </s>", "</s></s>", "</s> </s>\n"])
def test_a_second_end_is_not_appended_and_told(end: str) -> None:
    row = {"prompt": "Q:", "completion": "Yes" + end}

    (example,) = read(LLAMA2, row)

    assert example.completion_ids.count(LLAMA2.eos_token_id) == 1
    assert LLAMA2.decode(example.completion_ids).replace(" ", "") == "Yes</s>"
    (line,) = told(LLAMA2, row)
    assert "ends in '</s>' itself" in line


def test_the_end_that_a_completion_has_itself_is_the_one_it_keeps() -> None:
    tokenizer = tiny_tokenizer()

    (example,) = read(tokenizer, {"prompt": "a", "completion": "b<|endoftext|>\n"}, stop_ids={0, 2})

    assert example.completion_ids[-1] == 0


def test_an_end_token_inside_a_completion_stays_there() -> None:
    (example,) = read(LLAMA2, {"prompt": "Q:", "completion": "a</s>b"})

    assert LLAMA2.decode(example.completion_ids).replace(" ", "") == "a</s>b</s>"


def test_a_completion_of_nothing_but_its_end_is_empty() -> None:
    with pytest.raises(DataError, match="f:1: empty completion"):
        read(LLAMA2, {"prompt": "Q:", "completion": "</s>"})


def test_a_base_without_an_end_token_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None

    with pytest.raises(DataError, match="f:1: the base has no token to end a completion with"):
        read(tokenizer, {"prompt": "a", "completion": "b"}, stop_ids=set())
    (example,) = read(tokenizer, {"prompt": "a", "completion": "b"}, stop_ids={2})
    assert example.completion_ids[-1] == 2


def test_what_the_tokenizer_cannot_write_is_not_learnt_as_unknown() -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Yes": 2, "a": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")

    with pytest.raises(DataError, match="f:2: the tokenizer has no token for a part of the answer"):
        read(tokenizer, {"prompt": "a", "completion": " Yes"}, {"prompt": "a", "completion": " No"})


def test_a_text_that_the_tokenizer_changes_is_told() -> None:
    tokenizer = byte_level(None, ("<|end|>",), nfc=True, eos_token="<|end|>")

    (line,) = told(tokenizer, {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "cafe\u0301"})

    assert line == "the base's tokenizer changes the text, as it will in serving (1 time, first at f:2)"


def test_options_of_a_vote_that_come_to_the_same_tokens_are_one() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':' + m.content | trim + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )

    yes, no = read(tokenizer, {"prompt": [QUESTION], "votes": {"Yes": 3, "No": 1, "Yes ": 1}, "weight": 5})

    assert (tokenizer.decode(yes.completion_ids), yes.weight) == ("Yes<|im_end|>", 4.0)
    assert (tokenizer.decode(no.completion_ids), no.weight) == ("No<|im_end|>", 1.0)
