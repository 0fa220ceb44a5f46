"""Where the JSON that a client reads stands in the bytes that the engine drew.

In: the bytes of an answer's tokens, marks and reasoning among them, and the message that was made of them. Out: its
leaves, at their places in those bytes. JSON is looked for, not assumed: what is not found for certain has no leaves.
"""

import json
import re
from collections.abc import Collection, Iterator

from softspec.server.fields.leaves import Json, Leaf, read_json
from softspec.server.fields.message import Message

_OPENING = re.compile(rb"[{\[]")
_DECODER = json.JSONDecoder(parse_int=str)

Values = frozenset[tuple[str, str]]
"""Pointers of leaves with their values: equal for JSON that says the same, however it is written."""


def leaves_in(drawn: bytes, message: Message) -> list[Leaf] | None:
    """The leaves of the message's tool calls or, if it has none, of its content.

    None: neither is JSON, or it cannot be told which of the bytes it is. A call without a place has no leaves.
    """
    if message.arguments:
        return _leaves_of_calls(drawn, message) or None
    return _leaves_of_content(drawn, message)


def _leaves_of_content(drawn: bytes, message: Message) -> list[Leaf] | None:
    """The content is the last of what was drawn, but for a stop string and the mark that ends a turn."""
    content, stop = _utf8(message.content), _utf8(message.stop)
    # The stop string is not behind the content if it was asked to be a part of it.
    start = drawn.rfind(content + stop if content + stop in drawn else content)
    if start < 0 or not content.strip():
        return None
    end = start + len(content)
    found = read_json(drawn[:end], start)
    is_json = found.state != "broken" and not drawn[found.end : end].strip()
    return found.leaves if is_json else None


def _leaves_of_calls(drawn: bytes, message: Message) -> list[Leaf]:
    """The leaves of every call that has a place, in the order of the calls.

    A parser may write arguments anew, so they are found by what they say. A call has a place if JSON that says this
    stands behind the reasoning exactly as often as there are calls that say it.
    """
    start = _end_of_reasoning(drawn, message)
    texts = {number: _utf8(text) for number, text in message.arguments.items()}
    calls: dict[Values, list[int]] = {}
    leaves: dict[int, list[Leaf]] = {}
    for number, text in texts.items():
        read = read_json(text)
        if read.state == "finished":
            calls.setdefault(_values(text, read.leaves), []).append(number)
        elif read.state == "unfinished":
            leaves[number] = _leaves_of_last_call(drawn, start, _values(text, read.leaves))
    places: dict[Values, list[Json]] = {}
    for values, place in _places(drawn, start, calls):
        places.setdefault(values, []).append(place)
    for values, found in places.items():
        if len(found) == len(calls[values]):
            leaves |= {number: place.leaves for number, place in zip(calls[values], found, strict=True)}
    return [
        leaf._replace(path=f"/tool_calls/{number}/arguments{leaf.path}")
        for number in sorted(leaves)
        for leaf in leaves[number]
    ]


def _places(drawn: bytes, start: int, calls: Collection[Values]) -> Iterator[tuple[Values, Json]]:
    """Everything finished that says what a call says, but nothing inside of it."""
    sizes = {len(values) for values in calls}
    past = start
    for candidates in _candidates(drawn, start):
        for found in candidates:
            if found.start < past or found.state != "finished" or len(found.leaves) not in sizes:
                continue
            values = _values(drawn, found.leaves)
            if values in calls:
                yield values, found
                past = found.end


def _leaves_of_last_call(drawn: bytes, start: int, said: Values) -> list[Leaf]:
    """The finished leaves of a call with which the answer breaks off; its parser may have told less than was drawn."""
    *_, last = [[], *_candidates(drawn, start)]
    for found in last:
        if found.state != "finished" and said <= _values(drawn, found.leaves):
            paths = {path for path, _ in said}
            return [leaf for leaf in found.leaves if leaf.path in paths]
    return []


def _candidates(drawn: bytes, start: int) -> Iterator[list[Json]]:
    """Every object or list that stands in the text, with those on its first two floors, the outer before the inner.

    Arguments lie no deeper in the markup of a call: `[{"name": ..., "arguments": {...}}]`.
    """
    at = start
    while (opening := _OPENING.search(drawn, at)) is not None:
        outer = read_json(drawn, opening.start())
        yield [outer, *outer.inner()]
        at = max(outer.end, opening.end())


def _values(text: bytes, leaves: list[Leaf]) -> Values:
    plain = ((path, text[start:end].decode("utf-8", "replace")) for path, start, end in leaves)
    return frozenset((path, repr(_DECODER.decode(value))) for path, value in plain)


def _end_of_reasoning(drawn: bytes, message: Message) -> int:
    reasoning = _utf8(message.reasoning)
    return drawn.find(reasoning) + len(reasoning) if reasoning in drawn else 0


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")
