"""The tokens of an answer: how its text continues a prompt, and which of the tokens at which vLLM stops ends it.

In: a tokenizer, the ids at which the server stops, and what a chat template puts behind an answer. Out: texts and ids.
One rule for training, which learns answers, and for scoring, which is given them. Renders nothing itself.
"""

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

MARKER = "softspec0answer0here"
"""Stands for an answer where a template is asked what it puts before and behind one."""

ANCHORS = ("", "\n", "a", "=", "0", ".", ")", " a")
"""What a text is tokenised behind where its tokens depend on what stands before it, beside special tokens."""

BEFORE = "\n"
"""What an answer's text is to be read behind."""


def continuing(
    tokenizer: PreTrainedTokenizerBase, before: Sequence[int], text: str, readings: Collection[str]
) -> list[int] | None:
    """Ids of a text by itself, without the space that some tokenizers put before every text.

    Args:
        before: the ids that they shall follow.
        readings: what both together may be read as.
    Returns:
        None when no ids are read so.
    """
    for anchor in (*map(str, tokenizer.all_special_tokens[:4]), *ANCHORS):
        first = _encoded(tokenizer, anchor) if anchor else []
        ids = _encoded(tokenizer, anchor + text)
        if ids[: len(first)] == first and decoded(tokenizer, [*before, *ids[len(first) :]]) in readings:
            return ids[len(first) :]
    return None


def following(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text that follows another; those of the text alone where its tokenizer changes what it reads."""
    before, alone = _encoded(tokenizer, BEFORE), _encoded(tokenizer, text)
    wanted = decoded(tokenizer, before) + text
    if decoded(tokenizer, [*before, *alone]) == wanted:
        return alone
    found = continuing(tokenizer, before, text, {wanted})
    return alone if found is None else found


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids, special tokens included, as it is."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # Not verbose: the length is checked elsewhere.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as it stands in a rendered text."""
    added = tokenizer.added_tokens_decoder.get(token)
    return decoded(tokenizer, [token]) if added is None else str(added.content)


def stop_texts(tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]) -> dict[str, int]:
    """The texts by which the ids at which a server stops are found in a rendered text."""
    texts = {token_text(tokenizer, token): token for token in sorted(stop_ids)}
    return {text: token for text, token in texts.items() if text.strip()}


def first_stop(behind: str, stops: Collection[str]) -> tuple[int, str] | None:
    """Where in the text behind an answer the server stops, and at what; of several at one place the longest."""
    found = [(behind.find(stop), -len(stop), stop) for stop in stops if stop in behind]
    if not found:
        return None
    place, _, stop = min(found)
    return place, stop


def end_of_text(tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]) -> int | None:
    """The token that ends an answer to a text, which goes through no template; None where the server stops at none."""
    end = tokenizer.eos_token_id
    return min(stop_ids, default=None) if end is None else int(end)
