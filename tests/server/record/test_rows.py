"""Recorded rows are rows of training: its own reader reads them, and they say what was asked and answered."""

import json
from pathlib import Path
from typing import Any

import pytest

from softspec.server.record.recorder import Recorder, unanswered_beside
from softspec.server.record.rows import row_of
from softspec.train.data.reading import Reading, read_examples
from softspec.train.data.rows import Row as TrainingRow
from softspec.train.data.rows import parse_row
from softspec.train.data.sources import read_rows
from tests.support.tiny import tiny_tokenizer

QUESTION = {"role": "user", "content": "May I?"}
TOOL = {"type": "function", "function": {"name": "law", "parameters": {"type": "object"}}}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "law", "arguments": '{"of": "records"}'},
    "index": 0,
}
ABOUT = {
    "model": "my",
    "decision": "route",
    "reason": "too unsure",
    "uncertainty": {"mutual_information": 0.4},
}
CHAT = {"model": "my", "messages": [QUESTION], "temperature": 0.5, "uncertainty": {"detail": "tokens"}}


def chosen(finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": None, **message}, "finish_reason": finish_reason}


LEARNABLE = {
    "text": (CHAT, chosen(content="No.")),
    "call": ({**CHAT, "tools": [TOOL]}, chosen("tool_calls", tool_calls=[CALL])),
    "call and text": ({**CHAT, "tools": [TOOL]}, chosen("tool_calls", content="So:", tool_calls=[CALL])),
    "thoughts": (CHAT, chosen(content="No.", reasoning_content="Hm.", reasoning="Hm.")),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "May I?"}]}]},
        chosen(content="No."),
    ),
    "turns": (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                QUESTION,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "no", "tool_call_id": "c1"},
            ],
            "tools": [TOOL],
            "chat_template_kwargs": {"enable_thinking": False},
        },
        chosen(content="No 🦊\u2028."),
    ),
    "completion": ({"prompt": "Once"}, {"text": " upon", "finish_reason": "stop"}),
    "echo": ({"prompt": "Once", "echo": True}, {"text": "Once upon", "finish_reason": "stop"}),
}
PLAIN = ("text", "thoughts", "parts", "completion", "echo")
"""Rows that a template without tools can show."""
NOT_LEARNABLE = {
    "abstained": (CHAT, None),
    "cut off": (CHAT, chosen("length", content="No, be")),
    "filtered": (CHAT, chosen("content_filter", content="No")),
    "refused": (CHAT, chosen(refusal="I cannot.")),
    "nothing": (CHAT, chosen(content=" \n")),
    "broken call": (
        CHAT,
        chosen("tool_calls", tool_calls=[{**CALL, "function": {"name": "f", "arguments": "{"}}]),
    ),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        chosen(content="A fox."),
    ),
    "half a character": ({"messages": [{"role": "user", "content": "\ud83e"}]}, chosen(content="No.")),
    "begun answer": ({**CHAT, "continue_final_message": True}, chosen(content="No.")),
    "custom tool": ({**CHAT, "tools": [{"type": "custom", "custom": {"name": "x"}}]}, chosen(content="No.")),
    "token ids": ({"prompt": [1, 2, 3]}, {"text": " upon", "finish_reason": "stop"}),
    "middle": ({"prompt": "Once", "suffix": "time"}, {"text": " upon", "finish_reason": "stop"}),
}


def recorded(folder: Path, request: Any, answer: Any) -> tuple[Path, Path]:
    path = folder / "rows.jsonl"
    recorder = Recorder(path, 10**6, 1)
    recorder.keep("law", lambda: row_of(request, ABOUT, answer))
    recorder.close()
    return path, unanswered_beside(path)


@pytest.mark.parametrize(("request_", "answer"), LEARNABLE.values(), ids=LEARNABLE)
def test_training_reads_what_was_answered(tmp_path: Path, request_: Any, answer: Any) -> None:
    path, unanswered = recorded(tmp_path, request_, answer)

    [(place, content)] = read_rows(str(path))
    row = parse_row(content, TrainingRow, place)
    assert unanswered.read_text() == ""
    assert {name: content[name] for name in ABOUT} == ABOUT
    if row.is_text:
        assert (row.prompt, row.completion) == ("Once", " upon")
        return
    turns = row.turns()
    assert [turn.role for turn in turns] == [turn["role"] for turn in request_["messages"]] + ["assistant"]
    assert turns[-1].content == answer["message"]["content"]
    assert bool(turns[-1].tool_calls) == bool(answer["message"].get("tool_calls"))
    assert turns[-1].reasoning is None
    assert bool(row.tools) == ("tools" in request_)
    assert row.chat_template_kwargs == request_.get("chat_template_kwargs")


@pytest.mark.parametrize("name", PLAIN)
def test_rows_become_examples_of_prompt_and_answer(tmp_path: Path, name: str) -> None:
    tokenizer = tiny_tokenizer()
    path, _ = recorded(tmp_path, *LEARNABLE[name])

    [example] = read_examples(read_rows(str(path)), Reading(tokenizer, {tokenizer.eos_token_id}, 1024))

    answer = " upon" if name in ("completion", "echo") else "No."
    assert tokenizer.decode(example.completion_ids) == answer + tokenizer.eos_token
    assert ("May I?" in tokenizer.decode(example.prompt_ids)) == (answer == "No.")


@pytest.mark.parametrize(("request_", "answer"), NOT_LEARNABLE.values(), ids=NOT_LEARNABLE)
def test_what_training_would_learn_wrongly_or_not_at_all_lies_beside(
    tmp_path: Path, request_: Any, answer: Any
) -> None:
    path, unanswered = recorded(tmp_path, request_, answer)

    [line] = unanswered.read_text().splitlines()
    assert path.read_text() == ""
    assert json.loads(line)["reason"] == "too unsure"
    asked = "messages" if "messages" in request_ else "prompt"
    given = json.loads(line)[asked]
    assert given == request_[asked] or given[: len(request_[asked])] == request_[asked]


def test_call_has_only_what_a_template_shows(tmp_path: Path) -> None:
    path, _ = recorded(tmp_path, {**CHAT, "tools": [TOOL]}, chosen("tool_calls", tool_calls=[CALL]))

    call = {key: value for key, value in CALL.items() if key != "index"}
    assert json.loads(path.read_text())["messages"][-1]["tool_calls"] == [call]


def test_nothing_that_fails_reaches_who_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[str] = []
    path = tmp_path / "rows.jsonl"
    recorder = Recorder(path, 10**6, 1, errors.append)
    path.unlink()
    path.mkdir()

    recorder.keep("law", lambda: row_of(CHAT, ABOUT, chosen(content="secret")))
    recorder.keep("law", lambda: row_of({"messages": None}, ABOUT, chosen(content="secret")))
    recorder.close()

    assert errors == ["law", "law"]
    assert {record.message.partition(":")[0] for record in caplog.records} == {"a request was not recorded"}
    assert "secret" not in caplog.text
