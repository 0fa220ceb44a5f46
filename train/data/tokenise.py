"""Texts become token ids: the prompt's as the server makes them, the completion's so that both together are the text.

In: a prompt, what is to follow it, and the base's tokenizer. Out: ids, checked: they can be read back, and they end in
a token at which the server stops. Knows no rows.
"""

import re
from collections.abc import Collection
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from softspec.artefact.answer_tokens import continuing, decoded, end_of_text, stop_texts
from softspec.errors import DataError
from softspec.train.data.notes import Notes

Ids = list[int]


class Tokens:
    """The base's tokenizer, asked as the server asks it.

    Args:
        stop_ids: tokens at which the server stops.
        notes: where repairs are noted.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int], notes: Notes) -> None:
        self._tokenizer = tokenizer
        self._notes = notes
        self._stop_ids = frozenset(stop_ids)
        self.stops = stop_texts(tokenizer, stop_ids)

    def of_text(self, prompt: str, completion: str, place: str) -> tuple[Ids, Ids]:
        """Ids of a prompt as `/v1/completions` makes them, and of its completion with an end.

        Raises:
            DataError: nothing is said, or there is no token to end with; or as `of_chat`.
        """
        prompt_ids = self.prompt_of_text(prompt, place)
        answer, end = self._without_end(completion, place)
        if not answer.strip():
            raise DataError("empty completion: the assistant must say something")
        plain_ids = self._encode(prompt)
        return prompt_ids, [*self._behind(prompt, plain_ids, answer, place, ends=False), end]

    def of_chat(self, prompt: str, completion: str, place: str) -> tuple[Ids, Ids]:
        """Ids of a rendered prompt as `/v1/chat/completions` makes them, and of the rendered answer behind it.

        Raises:
            DataError: the tokenizer cannot continue the prompt with this text, or does not end it in a stop token.
        """
        prompt_ids = self.prompt_of_chat(prompt)
        return prompt_ids, self._behind(prompt, prompt_ids, completion, place, ends=True)

    def prompt_of_text(self, prompt: str, place: str) -> Ids:
        """Ids of a prompt as `/v1/completions` makes them.

        Raises:
            DataError: it comes to no token.
        """
        prompt_ids = self._encode(prompt, add_special_tokens=True)
        bos = self._tokenizer.bos_token_id
        if self._adds_bos and prompt_ids[:2] == [bos, bos]:
            prompt_ids = prompt_ids[1:]
            self._notes.add(
                f"a text prompt begins with {self._tokenizer.bos_token!r} itself, so the tokenizer's own is left out; "
                'ask such a model with "add_special_tokens": false',
                place,
            )
        return self._some(prompt_ids)

    def prompt_of_chat(self, prompt: str) -> Ids:
        """Ids of a rendered prompt as `/v1/chat/completions` makes them.

        Raises:
            DataError: it comes to no token.
        """
        return self._some(self._encode(prompt))

    def _some(self, prompt_ids: Ids) -> Ids:
        if not prompt_ids:
            raise DataError("empty prompt; expected at least one token before the completion")
        return prompt_ids

    def _behind(self, prompt: str, prompt_ids: Ids, completion: str, place: str, ends: bool) -> Ids:
        """Ids of a completion that follow those of its prompt.

        The prompt is tokenised by itself, as at serving time, so a token that would reach across the edge must not.
        """
        whole = self._encode(prompt + completion)
        if whole[: len(prompt_ids)] == prompt_ids:
            found = whole[len(prompt_ids) :]
        else:
            found = self._apart(
                prompt_ids, completion, {decoded(self._tokenizer, whole), prompt + completion}
            )
        if not found or (ends and found[-1] not in self._stop_ids):
            ended = self._tokenizer.convert_ids_to_tokens(found[-1]) if found else "nothing"
            raise DataError(f"the answer ends in the token {ended!r}, at which the server does not stop")
        self._check_spelling(prompt_ids + found, found[:-1] if ends else found, prompt + completion, place)
        return found

    def _apart(self, prompt_ids: Ids, completion: str, readings: set[str]) -> Ids:
        """Ids of a completion by itself, without the space that some tokenizers put before every text."""
        ids = continuing(self._tokenizer, prompt_ids, completion, readings)
        if ids is None:
            raise DataError(
                "the tokenizer cannot continue the prompt with this completion without changing the text; move the "
                "edge between them to another place"
            )
        return ids

    def _check_spelling(self, ids: Ids, answer: Ids, text: str, place: str) -> None:
        unknown = self._tokenizer.unk_token_id
        if unknown in answer and unknown not in self._stop_ids and self._tokenizer.unk_token not in text:
            raise DataError(
                f"the tokenizer has no token for a part of the answer, which would be learnt as "
                f"{self._tokenizer.unk_token!r}"
            )
        if _squeezed(text) not in _squeezed(decoded(self._tokenizer, ids)):
            self._notes.add("the base's tokenizer changes the text, as it will in serving", place)

    def _without_end(self, completion: str, place: str) -> tuple[str, int]:
        """A completion without stop tokens of its own at its end, and the token that ends it."""
        names = "|".join(re.escape(text) for text in sorted(self.stops, key=len, reverse=True))
        own = re.search(rf"({names})\s*(?:(?:{names})\s*)*$", completion) if names else None
        if own:
            self._notes.add(
                f"a text completion ends in {own[1]!r} itself, so no other end is put behind it", place
            )
            return completion[: own.start()], self.stops[own[1]]
        end = end_of_text(self._tokenizer, self._stop_ids)
        if end is None:
            raise DataError(
                "the base has no token to end a completion with; expected an eos_token in its tokenizer_config.json"
            )
        return completion, end

    @cached_property
    def _adds_bos(self) -> bool:
        return self._encode("", add_special_tokens=True)[:1] == [self._tokenizer.bos_token_id]

    def _encode(self, text: str, add_special_tokens: bool = False) -> Ids:
        # Not verbose: the length is checked elsewhere.
        ids = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return list(ids)


def _squeezed(text: str) -> str:
    return "".join(text.split())
