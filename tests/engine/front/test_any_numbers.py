"""Whatever JSON a request has, it is refused as the caller's mistake, or it draws a token with finite numbers.

The way is the real one, but for HTTP and the model: vLLM's request models, our gate, vLLM's input processor and its
transport between processes, our groups, and vLLM's batch and sampler with ours in them.
"""

import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from softspec.engine.wire import Adapter, GroupSpec, num_columns, unpack
from softspec.errors import UserError
from tests.support.random_json import USUAL, random_fields

pytestmark = pytest.mark.vllm

SPEC = GroupSpec((Adapter("a", 1, "a"), Adapter("b", 2, "b")), (-0.6931472,) * 2, "prefix_posterior", None, 0)
LONG = int(os.environ.get("RANDOM_REQUESTS", "100000"))
SHAPE = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
LENGTH = ("n", "max_tokens", "min_tokens", "stop_token_ids", "stop", "ignore_eos", "repetition_detection")
WORDS = (
    "allowed_token_ids",
    "logit_bias",
    "bad_words",
    "structured_outputs",
    "thinking_token_budget",
    "seed",
)
SAMPLING = (*SHAPE, *LENGTH, *WORDS, "logprobs", "prompt_logprobs", "logprob_token_ids", "stream_interval")
OPENAI = (*SAMPLING, "stream", "priority", "truncate_prompt_tokens", "vllm_xargs", "length_penalty")
FIELDS: dict[str, tuple[str, ...]] = {
    "chat": (*OPENAI, "top_logprobs", "max_completion_tokens"),
    "text": OPENAI,
    "responses": ("temperature", "top_p", "top_k", "seed", "max_output_tokens", "top_logprobs", "presence_penalty",
                  "frequency_penalty", "repetition_penalty", "logit_bias", "ignore_eos", "vllm_xargs", "priority",
                  "stop", "structured_outputs"),
    "messages": ("temperature", "top_p", "top_k", "max_tokens"),
    "tokens": SAMPLING,
}  # fmt: skip


class Refused(Exception):
    """The caller's mistake, at the stage that the message names."""


def params_of(route: str, fields: dict[str, Any]) -> tuple[Any, int]:
    """What vLLM's handler for a route hands to the engine client."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest

    hello = [{"role": "user", "content": "hello"}]
    if route == "tokens":
        request = GenerateRequest.model_validate({"token_ids": [5, 6, 7], "sampling_params": fields})
        return request.sampling_params, request.priority
    if route == "messages":
        asked = AnthropicMessagesRequest.model_validate(
            {"model": "m", "messages": hello, "max_tokens": 5, **fields}
        )
        chat = AnthropicServingMessages._build_base_request(asked, hello)
        return chat.to_sampling_params(chat.max_completion_tokens or 16, {}), 0
    models: dict[str, tuple[Any, dict[str, Any]]] = {
        "chat": (ChatCompletionRequest, {"messages": hello}),
        "text": (CompletionRequest, {"prompt": "hello"}),
        "responses": (ResponsesRequest, {"input": "hello"}),
    }
    model, rest = models[route]
    request = model.model_validate({"model": "m", **rest, **fields})
    return request.to_sampling_params(16, {}), request.priority


class Server:
    """All that lies between JSON and the token, and counts where requests ended."""

    def __init__(self, base: Path) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        from softspec.engine.front.gate import Gate
        from tests.support.scripted_vllm import FakeAsyncLLM
        from tests.support.worker_v1 import WorkerV1

        args = AsyncEngineArgs(model=str(base), dtype="float32", max_logprobs=20 + num_columns(2))
        config = args.create_engine_config()
        self.engine = FakeAsyncLLM(config)
        self.gate = Gate(self.engine)
        self.worker = WorkerV1(config)
        self.encode, self.decode = MsgpackEncoder().encode, MsgpackDecoder(EngineCoreRequest).decode
        self.ends: Counter[str] = Counter()

    def ask(self, route: str, fields: dict[str, Any], is_group: bool) -> None:
        """Send one request all the way.

        Raises:
            Exception: it would have been more than a refusal.
        """
        try:
            self._ask(route, fields, is_group)
            self.ends["drew tokens"] += 1
        except Refused as refusal:
            self.ends[f"refused by {refusal}"] += 1

    def _ask(self, route: str, fields: dict[str, Any], is_group: bool) -> None:
        from pydantic import ValidationError
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.parallel_sampling import ParentRequest
        from vllm.v1.request import Request

        from softspec.engine.front.translation import group_params, refuse_unsupported

        # These are 400 on every route of vLLM; but the last is a 500 of its own, of `structured_outputs` that is no
        # object, which reaches no engine.
        mistakes: tuple[type[Exception], ...] = (ValidationError, VLLMClientError, ValueError, TypeError)
        mistakes += (OverflowError, AttributeError)
        params, priority = attempt("vLLM's models", mistakes, lambda: params_of(route, fields))
        if is_group:
            attempt("us", (UserError,), lambda: refuse_unsupported(params))
        admitted = attempt(
            "the gate", (UserError, VLLMClientError), lambda: self.gate.admit(params, priority)
        )
        if is_group:
            admitted = group_params(admitted, SPEC)
        # Whatever else is raised from here on is a 500, or the end of the engine.
        request = attempt("vLLM's processor", (VLLMClientError,), lambda: self._process(admitted, priority))
        family = ParentRequest(request)
        for index in {0, admitted.n - 1}:
            child = copy(request)
            child.request_id, child.sampling_params = family.get_child_info(index)
            arrived = self.decode(self.encode(child))
            for token, row in self.worker.draw(Request.from_engine_core_request(arrived, None), 2):
                require_sound(token, row, admitted, is_group, self.worker.vocab_size)

    def _process(self, params: Any, priority: int) -> Any:
        prompt = {"type": "token", "prompt_token_ids": [5, 6, 7]}
        request = self.engine.input_processor.process_inputs(
            "request", prompt, params, ("generate",), priority=priority
        )
        self.engine.input_processor.assign_request_id(request)
        return request


def attempt(stage: str, mistakes: tuple[type[Exception], ...], work: Callable[[], Any]) -> Any:
    try:
        return work()
    except mistakes as error:
        raise Refused(stage) from error


def require_sound(token: int, row: Any, params: Any, is_group: bool, vocab_size: int) -> None:
    assert 0 <= token < vocab_size
    if params.allowed_token_ids and not params.structured_outputs:
        assert token in params.allowed_token_ids
    if not is_group:
        return
    num_top = params.logprobs - num_columns(2)
    drawn = unpack([token] * len(row), row.tolist(), num_top, 2)
    measured = (
        drawn.log_prob,
        drawn.total_entropy,
        drawn.aleatoric_entropy,
        drawn.epistemic,
        drawn.disagreement,
    )
    assert all(number == number and abs(number) < 1e30 for number in measured), drawn
    assert all(number <= 0 for number in drawn.member_log_probs), drawn


@pytest.fixture(scope="module")
def server(tiny_base: Path) -> Iterator[Server]:
    server, says_of_each = Server(tiny_base), logging.getLogger("vllm.sampling_params")
    says_of_each.disabled = True
    yield server
    says_of_each.disabled = False


def send(server: Server, count: int, seed: int) -> None:
    """Send so many random requests; a failure names its request."""
    rng = random.Random(seed)
    server.ends.clear()
    for number in range(count):
        route = rng.choice(tuple(FIELDS))
        fields, is_group = random_fields(rng, FIELDS[route]), rng.random() < 0.7
        try:
            server.ask(route, fields, is_group)
        except Exception as error:
            raise AssertionError(
                f"request {number}, {route}, group {is_group}: {str(fields)[:2000]}"
            ) from error
    print(f"\n{count} requests: {dict(server.ends)}")
    assert server.ends["drew tokens"] > count / 5


def test_every_field_is_tried_on_some_route() -> None:
    assert {field for fields in FIELDS.values() for field in fields} == set(USUAL)


def test_random_numbers_are_refused_or_draw_a_token(server: Server) -> None:
    send(server, 3000, seed=0)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_hundred_thousand_random_requests_are_refused_or_draw_a_token(server: Server) -> None:
    """Takes some minutes; `RANDOM_REQUESTS` is how many."""
    send(server, LONG, seed=1)
