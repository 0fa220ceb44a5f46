"""Scripts spelled letter by letter, with the marks of thinking as tokens of their own, and scripts that fail.

In: a text, and where the members differ. Out: the scripted core of `scripted_core.py` says it.
"""

from typing import Any

import pytest
from vllm.v1.engine import FinishReason

from softspec.engine.wire import LOCKSTEP_FAILED
from tests.support.scripted_core import Said
from tests.support.scripted_vllm import Server


def says(server: Server, text: str, unsure_at: int | None = None) -> int:
    """Let the next answers be this text, unsure at this character; returns the token that it is, from 1."""
    marks = ("<think>", "</think>")
    pieces: list[str] = []
    while text:
        mark = next((mark for mark in marks if text.startswith(mark)), text[0])
        pieces.append(mark)
        text = text.removeprefix(mark)
    if unsure_at is not None and unsure_at < 0:
        unsure_at += len(pieces)
    server.engine.play(
        [Said(piece, 0.9 if number == unsure_at else 0.1) for number, piece in enumerate(pieces)]
    )
    return (unsure_at or 0) + 1


def fail_in_the_middle(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine end the next answer at its third token, for members that came apart."""
    core = server.engine.engine_core
    next_of = core._next

    def failing(state: Any) -> Any:
        output = next_of(state)
        if output is not None and state.said == 3:
            output.finish_reason, output.stop_reason = FinishReason.ERROR, LOCKSTEP_FAILED
        return output

    monkeypatch.setattr(core, "_next", failing)
