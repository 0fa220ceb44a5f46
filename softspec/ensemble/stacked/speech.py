"""The text of an answer while it is drawn, as vLLM writes it, and where it ends.

In: tokens, one at a time. Out: text, and whether the answer is complete. Knows no model.
"""

from collections.abc import Collection, Sequence
from typing import Literal

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

INVALID_PREFIX = "Invalid prefix encountered"
"""What `DecodeStream` says of bytes that are no text and become another one with the next token."""


class Speech:
    """One answer's text; it ends with a stop token, with a stop string, or with its last token.

    A stop token is no text, and from a stop string on nothing is.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: Sequence[int],
        max_tokens: int,
        stop_ids: Collection[int],
        stop: Sequence[str],
    ) -> None:
        self.text = ""
        self.finish_reason: Literal["stop", "length"] = "length"
        self._left = max_tokens
        self._tokenizer = tokenizer._tokenizer
        self._stream = DecodeStream(ids=list(prompt_ids), skip_special_tokens=True)
        self._stop_ids, self._stop = stop_ids, stop

    def add(self, token: int) -> bool:
        """Take in one more token; whether the answer goes on after it."""
        self._left -= 1
        if token in self._stop_ids:
            self.finish_reason = "stop"
            return False
        self.text += self._spoken(token)
        # The one that was complete first; there was none with the token before.
        found = [(self.text.find(each) + len(each), len(each)) for each in self._stop if each in self.text]
        if found:
            end, length = min(found, key=lambda place: place[0])
            self.text, self.finish_reason = self.text[: end - length], "stop"
        return not found and self._left > 0

    def _spoken(self, token: int) -> str:
        """What a token adds; nothing while a character is incomplete."""
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:  # tokenizers raises nothing narrower
            if not str(error).startswith(INVALID_PREFIX):
                raise
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token) or ""
