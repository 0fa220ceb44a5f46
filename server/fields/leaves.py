"""The leaves of a JSON text, each with its pointer and with the bytes that spell it.

In: bytes, and where a JSON value begins in them; the text may break off. Out: its leaves as far as they are finished.
Knows nothing of tokens. Strict as RFC 8259; reads on a stack, so depth costs no recursion.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MAX_DEPTH = 200
"""What is nested deeper is not read: a pointer grows with its depth, and Python's own reader stops at some thousand."""

_CHARACTERS = rb'(?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+'
_LEXEME = re.compile(
    rb'[ \t\n\r]*+(?:([{}\[\],:])|("' + _CHARACTERS + rb'")'
    rb"|(-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?)(?![0-9.eE+-])|(true|false|null))"
)
_BROKEN_OFF = re.compile(
    rb'[ \t\n\r]*+(?:()\Z|("' + _CHARACTERS + rb"(?:\\(?:u[0-9a-fA-F]{0,3})?)?)\Z"
    rb"|(-?(?:0|[1-9][0-9]*)?(?:(?<=[0-9])\.[0-9]*)?(?:(?<=[0-9])[eE][-+]?[0-9]*)?)\Z"
    rb"|(t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?)\Z)"
)
"""Nothing more, or the beginning of a lexeme: the groups stand for the same kinds as above."""

# What may come next, a letter for a kind of lexeme: a mark stands for itself, then strings, numbers and words.
_KINDS = ("", "", "s", "n", "w")
_VALUE, _FIRST_VALUE = "snw{[", "snw{[]"
_KEY, _FIRST_KEY = "s", "s}"

State = Literal["finished", "unfinished", "broken"]


class Leaf(NamedTuple):
    """A string, number, true, false, null, empty object or empty list: `path` is its JSON pointer (RFC 6901).

    `start` and `end` bound its JSON text in bytes, quotes included.
    """

    path: str
    start: int
    end: int


@dataclass
class _Container:
    """An object or list; `size` counts what it has so far, `members` says which leaves are those of a key."""

    start: int
    is_object: bool
    path: str
    first_leaf: int
    end: int | None = None
    key: str = ""
    size: int = 0
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Json:
    """What was read of a JSON value: its finished leaves, and where the value ends, the text or the sense."""

    state: State
    start: int
    end: int
    leaves: list[Leaf]
    upper: list[_Container] = field(default_factory=list, repr=False)

    def inner(self) -> Iterator["Json"]:
        """The objects and lists on the first two floors inside of this one, the outer before the inner."""
        for part in self.upper:
            end = self.end if part.end is None else part.end
            first = bisect_left(self.leaves, part.start, key=_start)
            last = bisect_left(self.leaves, end, key=_start)
            leaves = [
                Leaf(path[len(part.path) :], start, stop) for path, start, stop in self.leaves[first:last]
            ]
            yield Json(self.state if part.end is None else "finished", part.start, end, leaves)


def read_json(text: bytes, start: int = 0) -> Json:
    """Read the JSON value that begins at `start`; what comes after it is not looked at.

    Of a key that occurs twice the last value counts, as in Python's json. A number with which the text breaks off
    inside an object or list is not finished: another digit might have come.
    """
    reader = _Reader(text)
    state, end = reader.read(start)
    return Json(state, start, end, [leaf for leaf in reader.leaves if leaf is not None], reader.upper)


class _Reader:
    def __init__(self, text: bytes) -> None:
        self._text = text
        self._open: list[_Container] = []
        self._expect = _VALUE
        self.leaves: list[Leaf | None] = []
        self.upper: list[_Container] = []

    def read(self, at: int) -> tuple[State, int]:
        """Read on until the value ends, the text breaks off or makes no sense; returns which, and where."""
        while (found := _LEXEME.match(self._text, at)) is not None:
            start, at = found.span(found.lastindex or 0)
            kind = _KINDS[found.lastindex or 0] or chr(self._text[start])
            if kind == "n" and self._open and at == len(self._text):
                return "unfinished", at
            if kind not in self._expect or (kind in "{[" and len(self._open) == MAX_DEPTH):
                return "broken", start
            self._take(kind, start, at)
            if not self._open:
                return "finished", at
        begun = _BROKEN_OFF.match(self._text, at)
        if begun is not None and _KINDS[begun.lastindex or 0] in self._expect:
            return "unfinished", len(self._text)
        return "broken", at

    def _take(self, kind: str, start: int, end: int) -> None:
        if kind == ":":
            self._expect = _VALUE
        elif kind == ",":
            self._expect = _KEY if self._open[-1].is_object else _VALUE
        elif kind in "{[":
            self._begin(start, is_object=kind == "{")
        elif kind in "}]":
            container = self._open.pop()
            container.end = end
            self._end(
                None if container.size else Leaf(container.path, container.start, end), container.first_leaf
            )
        elif self._expect in (_KEY, _FIRST_KEY):
            self._open[-1].key = pointer_step(self._text[start:end])
            self._expect = ":"
        else:
            self._end(Leaf(self._path(), start, end), len(self.leaves))

    def _begin(self, start: int, is_object: bool) -> None:
        container = _Container(start, is_object, self._path(), len(self.leaves))
        if 1 <= len(self._open) <= 2:
            self.upper.append(container)
        self._open.append(container)
        self._expect = _FIRST_KEY if is_object else _FIRST_VALUE

    def _end(self, leaf: Leaf | None, first_leaf: int) -> None:
        """A value has ended whose leaves begin at `first_leaf`; `leaf` is the value itself, if it is one."""
        if leaf is not None:
            self.leaves.append(leaf)
        if not self._open:
            return
        parent = self._open[-1]
        parent.size += 1
        self._expect = ",}" if parent.is_object else ",]"
        if parent.is_object:
            begin, end = parent.members.get(parent.key, (0, 0))
            self.leaves[begin:end] = [None] * (end - begin)
            parent.members[parent.key] = first_leaf, len(self.leaves)

    def _path(self) -> str:
        if not self._open:
            return ""
        parent = self._open[-1]
        return f"{parent.path}/{parent.key if parent.is_object else parent.size}"


def pointer_step(key: bytes) -> str:
    """A key's JSON text as a step of a pointer; half a surrogate pair, which no UTF-8 can carry, is U+FFFD."""
    whole = key[1:-1].decode("utf-8", "replace")
    if "\\" in whole:
        plain: str = json.loads(f'"{whole}"')
        whole = plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("~", "~0").replace("/", "~1")


def _start(leaf: Leaf) -> int:
    return leaf.start
