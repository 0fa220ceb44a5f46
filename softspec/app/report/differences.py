"""Which words of two texts differ.

In: texts. Out: one of them in pieces, those marked that the other has not at this place.
"""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

WORDS = re.compile(r"\w+|\s+|[^\w\s]")
LONGEST = 4000
"""Letters of an answer that are compared and shown."""


class Piece(NamedTuple):
    """A part of a text, and whether it differs."""

    text: str
    differs: bool


def pieces(text: str, other: str) -> list[Piece]:
    """The text, cut to a length that can be read, with what differs from the other one marked."""
    words, others = WORDS.findall(text[:LONGEST]), WORDS.findall(other[:LONGEST])
    found = list(_pieces(words, others))
    return [*found, Piece(" …", False)] if len(text) > LONGEST else found


def _pieces(words: list[str], others: list[str]) -> Iterator[Piece]:
    matcher = SequenceMatcher(None, others, words, autojunk=False)
    for change, _, _, first, last in matcher.get_opcodes():
        if text := "".join(words[first:last]):
            yield Piece(text, change != "equal")
