"""Whatever an upstream answers, it is refused in one line or can be worked with and sent on."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softspec.server.chat.assembly import Assembly
from softspec.server.upstream.answer import read_answer, read_chunk
from softspec.server.upstream.faults import Fault, fault_of_status
from tests.support.scripted_upstream import CHAT, TEXT, Json

KEYS = (
    "choices",
    "message",
    "delta",
    "text",
    "content",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "index",
    "usage",
)
MORE_KEYS = ("finish_reason", "prompt_tokens", "error", "code", "model", "id")
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud83e")
anything: st.SearchStrategy[Any] = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)


def like(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """An object that has these fields or lacks them, each as it should be or something else."""
    return st.fixed_dictionaries({}, optional={name: right | plain for name, right in fields.items()})


texts = st.none() | st.text(max_size=3)
counts = st.integers(0, 9)
call = like(index=counts, id=texts, function=like(name=texts, arguments=texts) | anything)
said = like(role=texts, content=texts, tool_calls=st.lists(call, max_size=2) | anything)
choice = like(index=counts, finish_reason=texts, message=said, delta=said, text=texts)
answers = st.fixed_dictionaries(
    {"choices": st.lists(choice, max_size=2) | anything},
    optional={"usage": like(prompt_tokens=counts, total_tokens=counts) | anything, "id": anything},
)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@settings(max_examples=80, deadline=None)
@given(document=answers | anything)
def test_what_passes_can_be_sent_on(path: str, document: Any) -> None:
    for read in (read_answer, lambda path, text: read_chunk(path, text, has_begun=True)):
        try:
            found = read(path, json.dumps(document))
        except Fault as fault:
            fault.error("big", 1, "")
            continue
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
        for each in found["choices"]:
            together = Assembly()
            together.add(each)
            together.choice()


@settings(max_examples=60, deadline=None)
@given(document=anything, status=st.sampled_from([400, 429, 500]))
def test_every_error_can_be_told(document: Any, status: int) -> None:
    told = str(fault_of_status(status, json.dumps(document).encode(), None).error("big", 1, "k"))

    assert told.startswith(f"upstream 'big' answered with status {status}")
    assert told.isprintable()
    told.encode()
