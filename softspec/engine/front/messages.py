"""vLLM's handler of Anthropic's Messages, for ensembles: half a tool call is no mistake, and errors keep their words.

In: the handler, changed once at start-up. Out: the same handler, which converts an answer that its judge ended, where
vLLM's would fail on JSON that is cut off, and which tells an error of the engine in Anthropic's shape, where vLLM's
tells of its own failure to read it. Requests to single models are converted as by vLLM.

vLLM 0.32 place: `AnthropicServingMessages.messages_full_converter`, `message_stream_converter`.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from softspec.engine.front.stopping import ABSTAINED
from softspec.engine.trace import current_trace

if TYPE_CHECKING:
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesResponse
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

_ERROR = 'data: {"error":'


def convert_judged(handler: "AnthropicServingMessages") -> None:
    """Let the handler convert answers of ensembles as this module says."""
    convert, convert_stream = handler.messages_full_converter, handler.message_stream_converter

    def converted(answer: "ChatCompletionResponse") -> "AnthropicMessagesResponse":
        choice = answer.choices[0]
        if current_trace.get() is not None and choice.stop_reason == ABSTAINED:
            calls = choice.message.tool_calls
            choice.message.tool_calls = [call for call in calls if _is_object(call.function.arguments)]
        return convert(answer)

    def converted_stream(chunks: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        is_of_ensemble = current_trace.get() is not None
        return _with_errors(chunks, convert_stream) if is_of_ensemble else convert_stream(chunks)

    handler.messages_full_converter, handler.message_stream_converter = converted, converted_stream


async def _with_errors(chunks: AsyncGenerator[str, None], convert: Any) -> AsyncGenerator[str, None]:
    """The converted events; at an error in the chunks they end with it."""
    errors: list[dict[str, Any]] = []

    async def until_error() -> AsyncGenerator[str, None]:
        async with aclosing(chunks):
            async for chunk in chunks:
                if chunk.startswith(_ERROR):
                    errors.append(json.loads(chunk.removeprefix("data: "))["error"])
                    return
                yield chunk

    async with aclosing(convert(until_error())) as events:
        async for event in events:
            yield event
    for error in errors:
        kind = "invalid_request_error" if error["code"] < 500 else "api_error"
        told = {"type": "error", "error": {"type": kind, "message": error["message"]}}
        yield f"event: error\ndata: {json.dumps(told)}\n\n"


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
