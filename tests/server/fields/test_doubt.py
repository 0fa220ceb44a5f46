"""A leaf's numbers against those of its tokens, however the text is cut into tokens."""

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softspec.engine.trace import ChoiceTrace
from softspec.maths.answer import TokenUncertainty, summarise
from softspec.server.fields.doubt import FieldUncertainty, doubtful_fields
from softspec.server.fields.message import Message

PRIOR = (math.log(0.25), math.log(0.75))
EOS = b"<|im_end|>"
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


class Vocabulary:
    """Pieces of text as tokens, numbered as they come."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def token(self, piece: bytes, *choices: bytes, **numbers: Any) -> TokenUncertainty:
        """A drawn token, and what its members would have drawn; alike unless something else is said."""
        ids = [self._id(each) for each in (piece, *(choices or (piece, piece)))]
        position = len(self.pieces)
        defaults: dict[str, Any] = {
            "log_prob": -0.01 * position,
            "total_entropy": 1.0,
            "aleatoric_entropy": 0.5,
            "epistemic": 0.001 * 2 ** (position % 9),
            "disagreement": (position % 5) / 5,
            "member_log_probs": (-0.1, -0.2),
        }
        return TokenUncertainty(ids[0], **{**defaults, **numbers}, member_choices=tuple(ids[1:]))

    def _id(self, piece: bytes) -> int:
        self.pieces.append(piece)
        return len(self.pieces) - 1

    def fields(
        self, message: Message, *tokens: TokenUncertainty, rule: Any = None
    ) -> list[FieldUncertainty] | None:
        trace = ChoiceTrace(PRIOR, rule or "prefix_posterior")
        return doubtful_fields(message, tokens, trace, self.pieces.__getitem__)

    def first(self, message: Message, *tokens: TokenUncertainty, rule: Any = None) -> FieldUncertainty:
        found = self.fields(message, *tokens, rule=rule)
        assert found
        return found[0]


def spoken(*pieces: str) -> list[FieldUncertainty] | None:
    """The fields of an answer whose content is these pieces."""
    words = Vocabulary()
    tokens = [words.token(piece.encode()) for piece in pieces]
    return words.fields(Message(content="".join(pieces)), *tokens, words.token(EOS))


def spelling(*pieces: str) -> dict[str, str]:
    """The text of the tokens that belong to each leaf."""
    return {
        field.path: "".join((*pieces, EOS.decode())[field.first_token - 1 :][: field.num_tokens])
        for field in spoken(*pieces) or ()
    }


def written(value: Any, space: str, path: str = "", at: int = 0) -> tuple[str, list[tuple[str, int, int]]]:
    """JSON and the places of its leaves, in characters of UTF-8, by recursion; a number's with what ends it."""
    if not isinstance(value, (dict, list)) or not value:
        text = json.dumps(value, ensure_ascii=False)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return text, [(path, at, at + len(text.encode()) + is_number)]
    members = value.items() if isinstance(value, dict) else ((str(i), each) for i, each in enumerate(value))
    places: list[tuple[str, int, int]] = []
    text = "{" if isinstance(value, dict) else "["
    for number, (key, inner) in enumerate(members):
        text += f",{space}" if number else ""
        text += f"{json.dumps(key, ensure_ascii=False)}{space}: " if isinstance(value, dict) else space
        step = key.replace("~", "~0").replace("/", "~1")
        said, found = written(inner, space, f"{path}/{step}", at + len(text.encode()))
        text, places = text + said, places + found
    return text + space + ("}" if isinstance(value, dict) else "]"), places


@given(VALUES, st.sampled_from(["", " ", "\n  "]), st.data())
def test_a_leaf_has_the_numbers_of_the_tokens_with_a_byte_in_it(
    value: Any, space: str, data: st.DataObject
) -> None:
    """Tokens are cut anywhere, in the middle of a character too; the oracle sums byte by byte."""
    text, places = written(value, space)
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=30)) | {0, len(raw)})
    words = Vocabulary()
    tokens = [words.token(raw[i:j]) for i, j in pairwise(cuts)] + [words.token(EOS)]
    owner = [number for number, token in enumerate(tokens) for _ in words.pieces[token.token_id]]

    found = words.fields(Message(content=text), *tokens)

    assert found is not None
    assert [field.path for field in found] == [path for path, _, _ in places]
    for field, (_, start, end) in zip(found, places, strict=True):
        mine = [tokens[number] for number in sorted(set(owner[start:end]))]
        assert field.epistemic == pytest.approx(sum(token.epistemic for token in mine))
        assert field.max_epistemic == max(token.epistemic for token in mine)
        assert field.log_prob == pytest.approx(sum(token.log_prob for token in mine))
        assert field.disagreement == max(token.disagreement for token in mine)
        assert (field.first_token, field.num_tokens) == (owner[start] + 1, len(mine))


@pytest.mark.parametrize(
    ("pieces", "spelled"),
    [
        (['{"', "a", '":', ' "', "re", "d", '"}'], {"/a": ' "red"}'}),
        (['{"a": "re', 'd", "b', '": 1', "2", "}"], {"/a": '{"a": "red", "b', "/b": '": 12}'}),
        (["[", "1", "2", ",", " ", "3", " ", "]"], {"/0": "12,", "/1": "3 "}),
        (["[", "true", ",", "null", "]"], {"/0": "true", "/1": "null"}),
        (['{"a":', ' "', '"', "}"], {"/a": ' ""'}),
        (["{", '"a"', ":", "[", "]", ",", '"b"', ":", "{", " ", "}", "}"], {"/a": "[]", "/b": "{ }"}),
        (["1", "2"], {"": "12<|im_end|>"}),
        (["tr", "ue"], {"": "true"}),
        (['"', "x", '"'], {"": '"x"'}),
        ([" {", "}", "\n"], {"": " {}"}),
    ],
)
def test_tokens_of_a_leaf_by_example(pieces: list[str], spelled: dict[str, str]) -> None:
    assert spelling(*pieces) == spelled


def test_an_answer_that_breaks_off_has_the_leaves_that_are_finished() -> None:
    assert spelling('{"a": "x", ', '"b": 1', "2") == {"/a": '{"a": "x", '}
    assert spoken('{"a": "x') == []


@pytest.mark.parametrize(
    "text", ["", "  ", "No.", '```json\n{"a": 1}\n```', '{"a": 1} and so on', "{'a': 1}"]
)
def test_a_text_that_is_not_json_has_no_fields(text: str) -> None:
    assert spoken(text) is None


def test_content_is_found_behind_reasoning_that_quotes_it_and_before_a_stop_string() -> None:
    words = Vocabulary()
    pieces = ["<think>", '{"a": 1}', "</think>", '{"a"', ": 1", "}", "END", " more"]
    tokens = [words.token(piece.encode()) for piece in pieces]

    field = words.first(Message(reasoning='{"a": 1}', content='{"a": 1}', stop="END"), *tokens)
    kept = words.first(Message(reasoning='{"a": 1}', content='{"a": 1}'), *tokens[:-2])
    outside = words.fields(Message(content='{"a": 2}'), *tokens)

    assert (field.path, field.first_token, field.num_tokens) == ("/a", 5, 2)
    assert kept == field
    assert outside is None


RED, GREEN = '{"colour": "red"}', '{"colour": "green", "n": {"x": [1]}}'
MARKUP = {
    "hermes": '<tool_call>\n{"name": "paint", "arguments": %s}\n</tool_call>'
    '<tool_call>{"name":"f","arguments":%s}</tool_call>',
    "required": '[{"name": "paint", "parameters": %s}, {"name": "f", "parameters": %s}]',
    "mistral": '[TOOL_CALLS][{"name": "paint", "arguments": %s}, {"name": "f", "arguments": %s}]',
    "bare": "[TOOL_CALLS]paint%s[TOOL_CALLS]f%s",
    "fenced": "<|tool|>paint\n```json\n%s\n```<|end|><|tool|>f\n```json\n%s\n```<|end|>",
    "reversed": '{"arguments": %s, "name": "paint"}; {"arguments": %s, "name": "f"}',
}


def called(raw: str, *arguments: str, **message: Any) -> dict[str, str] | None:
    """What the letters of each leaf spell, if every letter of the answer is a token."""
    words = Vocabulary()
    letters = [raw.encode()[i : i + 1] for i in range(len(raw.encode()))]
    tokens = [words.token(letter) for letter in letters]
    found = words.fields(Message(arguments=dict(enumerate(arguments)), **message), *tokens, words.token(EOS))
    if found is None:
        return None
    return {
        field.path: b"".join(letters[field.first_token - 1 :][: field.num_tokens]).decode() for field in found
    }


@pytest.mark.parametrize("form", MARKUP)
def test_arguments_are_found_in_the_markup_of_their_calls(form: str) -> None:
    """The parser's arguments are written anew, with other space and escapes than were drawn."""
    raw = MARKUP[form] % ('{"colour":"r\\u0065d"}', GREEN)

    assert called(raw, RED, json.dumps(json.loads(GREEN), indent=1)) == {
        "/tool_calls/0/arguments/colour": '"r\\u0065d"',
        "/tool_calls/1/arguments/colour": '"green"',
        "/tool_calls/1/arguments/n/x/0": "1]",
    }


@pytest.mark.parametrize("form", MARKUP)
def test_calls_that_say_the_same_are_told_apart_by_their_order(form: str) -> None:
    raw = MARKUP[form] % (RED, RED)
    first, second = raw.index('"red"'), raw.rindex('"red"')
    words = Vocabulary()
    tokens = [words.token(letter.encode()) for letter in raw]

    found = words.fields(Message(arguments={0: RED, 1: RED}), *tokens) or []

    assert [(field.path[:14], field.first_token - 1) for field in found] == [
        ("/tool_calls/0/", first),
        ("/tool_calls/1/", second),
    ]


@pytest.mark.parametrize("form", MARKUP)
@pytest.mark.parametrize("empty", ["{}", "{ }"])
def test_a_call_without_arguments_is_one_leaf(form: str, empty: str) -> None:
    assert called(MARKUP[form] % (empty, RED), "{}", RED) == {
        "/tool_calls/0/arguments": empty,
        "/tool_calls/1/arguments/colour": '"red"',
    }


def test_a_call_that_stands_nowhere_for_certain_is_left_out() -> None:
    raw = MARKUP["hermes"] % (RED, GREEN)

    assert called(raw, RED, '{"other": 1}') == {"/tool_calls/0/arguments/colour": '"red"'}
    assert called(f"As in {RED}: {raw}", RED, GREEN) == {
        "/tool_calls/1/arguments/colour": '"green"',
        "/tool_calls/1/arguments/n/x/0": "1]",
    }
    assert called('paint(colour="red")', RED) is None
    assert called(raw, "no JSON") is None


def test_what_the_reasoning_quotes_is_not_taken_for_the_call() -> None:
    raw = f"<think>I say {RED}</think>" + MARKUP["hermes"] % (RED, GREEN)

    found = called(raw, RED, GREEN, reasoning=f"I say {RED}")

    assert found is not None
    assert len(found) == 3


@pytest.mark.parametrize("form", MARKUP)
def test_a_call_that_breaks_off_has_the_leaves_that_were_told(form: str) -> None:
    """A stream's parser keeps some of the text back, and what it has not told is in no field."""
    raw = MARKUP[form] % (RED, '{"a": "b", "c": {"d": 1, "e": 2}')
    raw = raw[: raw.index("2}") + 1]

    assert called(raw, RED, '{"a": "b", "c": {"d": 1, "e": 2') == {
        "/tool_calls/0/arguments/colour": '"red"',
        "/tool_calls/1/arguments/a": '"b"',
        "/tool_calls/1/arguments/c/d": "1,",
    }
    assert called(raw, RED, '{"a": "b", "c') == {
        "/tool_calls/0/arguments/colour": '"red"',
        "/tool_calls/1/arguments/a": '"b"',
    }


def test_true_and_one_are_different_arguments() -> None:
    raw = MARKUP["required"] % ('{"a": true}', '{"a": 1}')

    assert called(raw, '{"a": 1}', '{"a": 1.0}') == {"/tool_calls/0/arguments/a": "1}"}


def test_text_full_of_brackets_is_looked_through_once() -> None:
    assert called("[" * 3_000 + "x" + "{" * 3_000, RED) is None


@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
def test_members_that_part_are_named_with_the_belief_in_them(rule: Any) -> None:
    words = Vocabulary()
    tokens = [
        words.token(b'{"city":'),
        words.token(b' "', b' "', b'"'),
        words.token(b"Par", b"Par", b"P", member_log_probs=(-0.1, -2.0)),
        words.token(b"is", b"is", b"ma", member_log_probs=(-0.1, -3.0)),
        words.token(b'"}'),
    ]
    expected = summarise(tokens[:3], PRIOR, rule).member_weights

    field = words.first(Message(content='{"city": "Paris"}'), *tokens, rule=rule)

    likely, unlikely = field.alternatives if rule != "fixed" else field.alternatives[::-1]
    assert (likely.text, likely.members, likely.complete) == ('"Paris', (0,), False)
    assert (unlikely.text, unlikely.members, unlikely.complete) == ('"Parma', (1,), False)
    assert (likely.weight, unlikely.weight) == pytest.approx(expected)


def parted(*steps: tuple[bytes, bytes, bytes]) -> list[tuple[str, bool]]:
    """The alternatives of the first leaf, where each step has what was drawn and what two members find likeliest."""
    words = Vocabulary()
    tokens = [words.token(*step) for step in steps]
    content = b"".join(step[0] for step in steps).decode()
    field = words.first(Message(content=content), *tokens)
    return sorted((each.text, each.complete) for each in field.alternatives)


@pytest.mark.parametrize(
    ("steps", "alternatives"),
    [
        ([(b"[1", b"[1", b"[1"), (b",", b",", b"2"), (b"3]",) * 3], [("1", True), ("12", False)]),
        ([(b"[1", b"[1", b"[1"), (b",", b",", b" ,"), (b"3]",) * 3], []),
        ([(b'["a', b'["a', b'["b'), (b'"]',) * 3], [('"a', False), ('"b', False)]),
        ([(b'["a', b'["a', b"[null"), (b'"]',) * 3], [('"a', False), ("null", True)]),
        ([(b'["', b'["', b"["), (b"a", b"a", b"a"), (b'"]',) * 3], []),
        ([(b"[",) * 3, (b'"', b'"', b" "), (b'"]', b'"]', b'b"')], [('""', True), ('"b"', True)]),
        ([(b"[",) * 3, (b"true", b"true", b"false"), (b"]",) * 3], [("false", True), ("true", True)]),
        ([(b"[",) * 3, (b"[]", b"[]", b'["'), (b"]",) * 3], [('["', False), ("[]", True)]),
        ([(b"[",) * 3, (b"7", b"7", b"]"), (b"]",) * 3], [("7", False), ("]", False)]),
        ([(b'["\xc3', b'["\xc3', b'["\xc4'), (b"\xa9", b"\xa9", b"\xa9"), (b'"]',) * 3], [('"�', False)] * 2),
        ([(b'["a"',) * 3, (b",", b",", b"]"), (b"1]",) * 3], []),
    ],
    ids=str,
)
def test_alternatives_by_example(steps: Any, alternatives: list[tuple[str, bool]]) -> None:
    """Another space, or another token that may still become the same value, is no alternative."""
    assert parted(*steps) == alternatives


def test_tokens_whose_choices_were_not_measured_have_no_alternatives() -> None:
    words = Vocabulary()
    drawn = TokenUncertainty(words.token(b"true").token_id, -1.0, 1.0, 0.5, 0.5, 0.5, (-1.0, -1.0))

    field = words.first(Message(content="true"), drawn)

    assert field.alternatives == ()
