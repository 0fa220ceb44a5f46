"""Leaves of a JSON text against Python's json: the same values at the same pointers, wherever the text breaks off."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softspec.server.fields.leaves import MAX_DEPTH, read_json

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
SPACE = st.text(" \t\n\r", max_size=3)


@st.composite
def documents(draw: st.DrawFn) -> tuple[Any, str]:
    """A value and its JSON, written with any space and with or without escapes."""
    value = draw(VALUES)
    separators = (f"{draw(SPACE)},{draw(SPACE)}", f"{draw(SPACE)}:{draw(SPACE)}")
    indent = draw(st.none() | st.text(" \t", max_size=2))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), separators=separators, indent=indent)
    return value, text


def leaves_of(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """The leaves of a value, by recursion over Python's own."""
    if isinstance(value, dict) and value:
        members = ((key.replace("~", "~0").replace("/", "~1"), inner) for key, inner in value.items())
    elif isinstance(value, list) and value:
        members = ((str(index), inner) for index, inner in enumerate(value))
    else:
        return [(path, value)]
    return [leaf for step, inner in members for leaf in leaves_of(inner, f"{path}/{step}")]


def read(text: bytes) -> list[tuple[str, Any]]:
    return [(leaf.path, json.loads(text[leaf.start : leaf.end])) for leaf in read_json(text).leaves]


@given(documents(), SPACE, st.sampled_from(["", " ", "}", "]", ",", '"', "<|im_end|>", "\n{}"]))
def test_every_document_has_the_leaves_that_python_reads(
    document: tuple[Any, str], before: str, after: str
) -> None:
    value, written = document
    text = f"{before}{written}{after}".encode()

    found = read_json(text)

    assert repr(read(text)) == repr(leaves_of(value))
    assert (found.state, text[: found.end].decode()) == ("finished", before + written)


@given(documents(), st.data())
def test_a_text_that_breaks_off_has_the_leaves_that_are_finished(
    document: tuple[Any, str], data: st.DataObject
) -> None:
    value, written = document
    whole = written.encode()
    cut = data.draw(st.integers(0, len(whole)))

    found = read_json(whole[:cut])

    complete = [leaf for leaf in read_json(whole).leaves if leaf.end <= cut]
    missing = {leaf.path for leaf in complete} - {leaf.path for leaf in found.leaves}
    assert [leaf for leaf in found.leaves if leaf.path or isinstance(value, (dict, list))] == [
        leaf
        for leaf in complete
        if leaf.path not in missing and (leaf.path or isinstance(value, (dict, list)))
    ]
    # Missing is at most the number at the very end, which could go on.
    assert all(
        whole[leaf.start] in b"-0123456789" and leaf.end == cut for leaf in complete if leaf.path in missing
    )
    if isinstance(value, (dict, list, str)):
        assert found.state == ("finished" if cut == len(whole) else "unfinished")


@given(st.text('{}[]",:\\u0 1e.-truefalsn\x01é', max_size=12).map(str.lstrip))
def test_what_python_does_not_read_is_not_finished(text: str) -> None:
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        assert read_json(text.encode()).state != "finished"
        return

    found = read_json(text.encode())
    if found.state == "finished":
        assert repr(read(text.encode())) == repr(leaves_of(value))
        assert found.end == len(text[:end].encode())
    else:  # Python stops in the middle of a number: 01, 1.e
        assert text[end] in "0123456789.eE+-"


@given(st.binary(max_size=20))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    assert read_json(text).state in ("finished", "unfinished", "broken")


@pytest.mark.parametrize(
    ("text", "leaves"),
    [
        ('{"a/b": 1, "m~n": {"": 2}}', [("/a~1b", 1), ("/m~0n/", 2)]),
        ("[]", [("", [])]),
        ("{ }", [("", {})]),
        ('{"a": [], "b": {}}', [("/a", []), ("/b", {})]),
        ('"é\\u00e9\\ud83d\\ude00\\""', [("", 'éé😀"')]),
        ('""', [("", "")]),
        ('{"\\u0061\\ud83d\\ude00": 1}', [("/a😀", 1)]),
        ('{"\\ud800": 1}', [("/\ufffd", 1)]),
        ('{"a": 1, "b": 2, "a": 3}', [("/b", 2), ("/a", 3)]),
        ('{"a": {"x": 1, "y": 2}, "a": {"y": 3}}', [("/a/y", 3)]),
        ('{"a": {"x": 1}, "a": {"x": 2}, "a": []}', [("/a", [])]),
        ("-0.5e+10", [("", -0.5e10)]),
        ("12", [("", 12)]),
        ('{"a": 12', []),
        ('{"a": 12,', [("/a", 12)]),
        ('{"a": tru', []),
        ('{"a": "x\\u00', []),
        ('{"a": 1, "b": {"c": "d"', [("/a", 1), ("/b/c", "d")]),
    ],
)
def test_leaves_by_example(text: str, leaves: list[tuple[str, Any]]) -> None:
    assert read(text.encode()) == leaves


@pytest.mark.parametrize(
    "text",
    ["NaN", "Infinity", "01", "1.e5", "'a'", "{a: 1}", "[1,]", '{"a" 1}', '"\n"', '"\\x"', "truth", "]"],
)
def test_what_is_not_json_is_broken(text: str) -> None:
    assert read_json(text.encode() + b" ").state == "broken" or read_json(text.encode()).end < len(text)


def test_depth_costs_no_recursion_and_ends_somewhere() -> None:
    deep = read_json(b"[" * 100 + b"1" + b"]" * 100)
    too_deep = read_json(b"[" * 100_000)

    assert [leaf.path for leaf in deep.leaves] == ["/0" * 100]
    assert (too_deep.state, too_deep.end) == ("broken", MAX_DEPTH)


def test_half_a_character_does_no_harm() -> None:
    """A key that breaks off in a character, as an answer may that is cut between two of its tokens."""
    text = b'{"a": "x", "\xc3": "y", "\xf0\x9f": "\xf0\x9f\x98'

    assert [leaf.path for leaf in read_json(text).leaves] == ["/a", "/\ufffd"]
