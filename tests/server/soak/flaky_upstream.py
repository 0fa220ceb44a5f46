"""An upstream on a bad day: answers, errors, silence and half answers, at random."""

import asyncio
import random

from tests.support.scripted_upstream import (
    DONE,
    Request,
    Script,
    ScriptedUpstream,
    answer,
    chat_answer,
    chat_chunk,
    chat_stream,
    error,
    event,
    events,
    raw,
)


def flaky_upstream(seed: int) -> ScriptedUpstream:
    """An upstream that answers three requests of five."""
    rng = random.Random(seed)

    async def play(request: Request) -> bool:
        is_stream = bool(request.body.get("stream"))
        right = chat_stream("Yes", ", you", " may.") if is_stream else answer(chat_answer("Yes, you may."))
        wrong: list[Script] = [
            error(500),
            error(503, headers={"retry-after": "0"}),
            error(429),
            error(400),
            answer(b"<html>no JSON</html>"),
            answer({"choices": []}),
            raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"),
            raw(b""),
            events(event(chat_chunk("Half")), complete=False),
            events(event(chat_chunk("Half")), event("no JSON"), DONE),
        ]
        await asyncio.sleep(rng.random() / 50)
        return await (right if rng.random() < 0.6 else rng.choice(wrong))(request)

    return ScriptedUpstream([play])
