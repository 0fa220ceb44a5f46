"""The tokens of an answer, on tokenizers of the families that bases come with."""

import pytest
from transformers import PreTrainedTokenizerBase

from softspec.artefact.answer_tokens import continuing, decoded, end_of_text, first_stop, stop_texts
from tests.support.tiny import tiny_tokenizer
from tests.support.tokenizer_families import LLAMA3, byte_level, sentencepiece

FAMILIES = {
    "gpt2": lambda: byte_level(None, ("<|endoftext|>",)),
    "llama3": lambda: byte_level(LLAMA3, ("<pad>", "<|begin|>"), bos="<|begin|>", add_bos=True),
    "prefix-space": lambda: byte_level(None, ("<|endoftext|>",), add_prefix_space=True),
    "metaspace-always": lambda: sentencepiece("always"),
    "metaspace-first": lambda: sentencepiece("first"),
    "metaspace-never": lambda: sentencepiece("never"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["Yes", " Yes", "Rome is the answer.", "\n\nYes", "42", "naïve 😀", "  two"])
def test_a_text_continues_another_without_a_space_of_the_tokenizers_own(family: str, text: str) -> None:
    tokenizer: PreTrainedTokenizerBase = FAMILIES[family]()
    before = tokenizer.encode("x=", add_special_tokens=False)
    wanted = decoded(tokenizer, before) + text

    ids = continuing(tokenizer, before, text, {wanted})

    assert ids is not None
    assert decoded(tokenizer, [*before, *ids]) == wanted


def test_the_first_stop_behind_an_answer_counts_and_of_two_at_one_place_the_longer() -> None:
    assert first_stop("\n<|end|><|end|>more</s>", ["</s>", "<|end|>", "<|end|><|end|>"]) == (
        1,
        "<|end|><|end|>",
    )
    assert first_stop("nothing", ["</s>"]) is None


def test_an_answer_to_text_ends_in_the_tokenizers_end_or_else_the_first_that_is_listed() -> None:
    tokenizer = tiny_tokenizer()
    assert end_of_text(tokenizer, {0, 2}) == tokenizer.eos_token_id == 2

    tokenizer.eos_token = None
    assert end_of_text(tokenizer, {2, 1}) == 1
    assert end_of_text(tokenizer, set()) is None


def test_stops_are_found_by_the_text_that_a_template_writes() -> None:
    assert stop_texts(tiny_tokenizer(), {2, 0}) == {"<|im_end|>": 2, "<|endoftext|>": 0}
