"""vLLM's load generator, as `vllm bench serve` runs it, and somebody who hears every answer.

In: conversations, a running server, how fast they come. Out: vLLM's own measurements. Starts no engine and knows no
ensembles: what is heard is the caller's.

vLLM 0.32 places: `vllm.benchmarks.serve.benchmark`, which finds its request functions by name;
`async_request_openai_chat_completions`, which posts with the session that it is given and reads `content.iter_any()`.
"""

import asyncio
import io
import math
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from vllm.benchmarks.datasets import SampleRequest
from vllm.benchmarks.lib.endpoint_request_func import (
    ASYNC_REQUEST_FUNCS,
    RequestFuncInput,
    RequestFuncOutput,
    async_request_openai_chat_completions,
)
from vllm.benchmarks.serve import TaskType, benchmark

_NAME = "softspec-chat"

Hear = Callable[[int | None, bytes], str | None]
"""(status, or None without an answer; its body) -> why an answer that vLLM took for one is none, if so."""


@dataclass(frozen=True)
class Offer:
    """Requests that are sent: at most `users` at once, and `rate` a second with Poisson arrivals; None is no limit."""

    conversations: Sequence[Sequence[dict[str, Any]]]
    output_tokens: int
    ignore_eos: bool
    users: int | None
    rate: float | None


def offer_load(server: str, model: str, offer: Offer, hear: Hear) -> dict[str, Any]:
    """Send all requests, streamed, and wait for them; returns vLLM's document with the times of each.

    Args:
        server: its URL, without a path.
        hear: is told of every answer when it has ended.
    """
    ASYNC_REQUEST_FUNCS[_NAME] = _heard_by(hear)
    requests = [
        SampleRequest("", 0, offer.output_tokens, chat_messages=[*messages])
        for messages in offer.conversations
    ]
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of failures is in the document
        document: dict[str, Any] = asyncio.run(
            benchmark(
                task_type=TaskType.GENERATION,
                endpoint_type=_NAME,
                api_url=f"{server}/v1/chat/completions",
                base_url=server,
                model_id=model,
                model_name=model,
                tokenizer=None,
                input_requests=requests,
                logprobs=None,
                request_rate=math.inf if offer.rate is None else offer.rate,
                burstiness=1.0,
                disable_tqdm=not sys.stderr.isatty(),
                num_warmups=0,
                profile=False,
                selected_percentile_metrics=[],
                selected_percentiles=[],
                ignore_eos=offer.ignore_eos,
                goodput_config_dict={},
                max_concurrency=offer.users,
                lora_modules=None,
                extra_headers=None,
                extra_body=None,
                ready_check_timeout_sec=0,
            )
        )
    return document


def _heard_by(hear: Hear) -> Any:
    async def request(
        request_func_input: RequestFuncInput, session: Any, pbar: Any = None
    ) -> RequestFuncOutput:
        heard = _Session(session)
        output = await async_request_openai_chat_completions(request_func_input, heard, pbar)
        reason = hear(heard.status, bytes(heard.body))
        if output.success and reason is not None:
            output.success, output.error = False, reason
        return output

    return request


class _Session:
    """A client session for one request, of whose answer it keeps status and body."""

    def __init__(self, session: Any) -> None:
        self.status: int | None = None
        self.body = bytearray()
        self._session = session

    @asynccontextmanager
    async def post(self, **arguments: Any) -> AsyncIterator[Any]:
        """What vLLM asks of a session."""
        async with self._session.post(**arguments) as response:
            self.status = response.status
            yield _Response(response, self.body)


class _Response:
    """A response whose content is kept as it is read."""

    def __init__(self, response: Any, body: bytearray) -> None:
        self.status, self.reason = response.status, response.reason
        self.content = self
        self._chunks = response.content
        self._body = body

    async def iter_any(self) -> AsyncIterator[bytes]:
        """What vLLM asks of a response's content."""
        async for chunk in self._chunks.iter_any():
            self._body += chunk
            yield chunk
