"""A scripted stand-in for the engine behind vLLM's routes, without vLLM.

In: per choice, a script of tokens with their uncertainty. Out: vLLM-shaped bodies and event streams, and the
trace filled as `EnsembleClient` fills it. The routes around it are the server's own; that its answers are shaped as
vLLM's is a test.
"""

import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict
from starlette.testclient import TestClient

from softspec.artefact.calibration import Calibration
from softspec.artefact.manifest import WeightsRule
from softspec.engine.meter import Meter, current_meter
from softspec.engine.trace import ChoiceTrace, current_trace
from softspec.errors import SoftspecError
from softspec.maths.answer import TokenUncertainty
from softspec.server.access.access import Access
from softspec.server.access.gate import Gate
from softspec.server.access.second_port import serve_beside
from softspec.server.access.settings import AccessSettings
from softspec.server.chat.routes import UpstreamRoute, add_chat_routes
from softspec.server.chat.service import Service
from softspec.server.dialects.routes import error_at
from softspec.server.observe.middleware import Layer, Observer, observe_with
from softspec.server.ops.errors import respond_to_error
from softspec.server.ops.metrics import Metrics
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from softspec.server.record.recorder import Recorder
from softspec.server.rollout.aliases import Aliases, Weights
from softspec.server.rollout.rollout import Rollout
from softspec.server.rollout.routes import add_rollout_routes
from softspec.server.rollout.settings import Shadow
from softspec.server.rollout.shadows import Shadows
from softspec.server.upstream.settings import UpstreamSettings
from softspec.server.upstream.upstreams import Upstreams

ENSEMBLE = "jurists"
PROMPT_TOKENS = 7
UNIFORM = (math.log(0.5), math.log(0.5))


def token(
    token_id: int, epistemic: float = 0.1, members: tuple[float, float] = (-1.0, -1.0)
) -> TokenUncertainty:
    """A drawn token; its text is `decode(token_id)`."""
    return TokenUncertainty(
        token_id=token_id,
        log_prob=math.log((math.exp(members[0]) + math.exp(members[1])) / 2),
        total_entropy=0.5 + epistemic,
        aleatoric_entropy=0.5,
        epistemic=epistemic,
        disagreement=epistemic / 2,
        member_log_probs=members,
    )


def decode(token_id: int) -> str:
    return f" w{token_id}"


def spell(token_id: int) -> tuple[str, list[int]]:
    """The text of a token, and its bytes."""
    return decode(token_id), list(decode(token_id).encode())


AGREED = tuple(token(number) for number in range(4))
# The members part at the third token: after it only the first one is believed.
TORN = (token(0), token(1), token(2, 0.6, (-0.5, -9.0)), token(3))


class _StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class _ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: str


class _CommonFields(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: bool | None = False
    n: int | None = 1
    echo: bool | None = False
    vllm_xargs: dict[str, Any] | None = None
    stream_options: _StreamOptions | None = None
    request_id: str = "made-by-server"
    prompt_logprobs: int | None = None
    use_beam_search: bool = False
    logprob_token_ids: list[int] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    response_format: _ResponseFormat | None = None


class ChatFields(_CommonFields):
    messages: list[dict[str, Any]]
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    max_completion_tokens: int | None = None
    parallel_tool_calls: bool | None = True
    tools: list[Any] | None = None
    tool_choice: Any = "none"


class TextFields(_CommonFields):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None


@dataclass
class FakeEngine:
    """Answers every choice with its script. `sent` counts streamed tokens; `aborted`: the stream ended early."""

    scripts: Sequence[Sequence[TokenUncertainty]]
    failure: Exception | None = None
    measures: bool = True
    log_weights: tuple[float, ...] = UNIFORM
    weights_rule: WeightsRule = "prefix_posterior"
    calibration: Calibration | None = None
    sent: int = 0
    aborted: bool = False
    requests: list[Any] = field(default_factory=list)

    async def route(self, request: Any, _raw_request: Request) -> Response:
        """What vLLM's route for chat or text completions does."""
        self.requests.append(request)
        meter = current_meter.get() or Meter()
        meter.prompt_tokens += PROMPT_TOKENS
        if self.failure is not None:
            raise self.failure
        trace = current_trace.get()
        choices = trace.choices if trace is not None and self.measures else {}
        for index in range(len(self.scripts)):
            choices[index] = ChoiceTrace(
                self.log_weights, self.weights_rule, seed=100 + index, calibration=self.calibration
            )
        if request.stream:
            return StreamingResponse(self._events(request, choices), media_type="text/event-stream")
        for index, script in enumerate(self.scripts):
            choices[index].tokens.extend(script)
            meter.count(len(script), time.monotonic())
        return JSONResponse(self._body(request))

    def _body(self, request: Any) -> dict[str, Any]:
        choices = []
        for index, script in enumerate(self.scripts):
            text = "".join(decode(drawn.token_id) for drawn in script)
            answer = (
                {"message": {"role": "assistant", "content": text, "refusal": None}}
                if _is_chat(request)
                else {"text": text}
            )
            choices.append(
                {"index": index, **answer, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
            )
        kind = "chat.completion" if _is_chat(request) else "text_completion"
        return {**self._head(request, kind), "choices": choices, "usage": self._usage(self._total())}

    async def _events(self, request: Any, choices: dict[int, ChoiceTrace]) -> AsyncGenerator[str, None]:
        finished = False
        try:
            for chunk in self._chunks(request, choices):
                yield f"data: {json.dumps(chunk)}\n\n"
            finished = True
            yield "data: [DONE]\n\n"
        finally:
            self.aborted = not finished

    def _chunks(self, request: Any, choices: dict[int, ChoiceTrace]) -> Iterator[dict[str, Any]]:
        is_chat = _is_chat(request)
        options = request.stream_options or _StreamOptions()
        head = self._head(request, "chat.completion.chunk" if is_chat else "text_completion")

        def chunk(index: int, delta: dict[str, Any], finish_reason: str | None, done: int) -> dict[str, Any]:
            answer = {"delta": delta} if is_chat else {"text": delta["content"]}
            choice = {"index": index, **answer, "logprobs": None, "finish_reason": finish_reason}
            usage = (
                {"usage": self._usage(done)}
                if options.include_usage and options.continuous_usage_stats
                else {}
            )
            return {**head, "choices": [choice], **usage}

        for index, script in enumerate(self.scripts):
            choices[index].tokens.append(script[0])
            self._send_one()
        if is_chat:
            # As vLLM does: the first token is there before the chunk that opens the message.
            for index in range(len(self.scripts)):
                yield chunk(index, {"role": "assistant", "content": ""}, None, 0)
        for step in range(max(len(script) for script in self.scripts)):
            for index, script in enumerate(self.scripts):
                if step < len(script):
                    if step > 0:
                        choices[index].tokens.append(script[step])
                        self._send_one()
                    reason = "stop" if step == len(script) - 1 else None
                    yield chunk(index, {"content": decode(script[step].token_id)}, reason, step + 1)
        if options.include_usage:
            yield {**head, "choices": [], "usage": self._usage(self._total())}

    def _send_one(self) -> None:
        self.sent += 1
        if (meter := current_meter.get()) is not None:
            meter.count(1, time.monotonic())

    def _head(self, request: Any, kind: str) -> dict[str, Any]:
        return {"id": "cmpl-1", "object": kind, "created": 1, "model": request.model}

    def _total(self) -> int:
        return sum(len(script) for script in self.scripts)

    @staticmethod
    def _usage(completion: int) -> dict[str, int]:
        return {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": completion,
            "total_tokens": PROMPT_TOKENS + completion,
        }


def _is_chat(request: Any) -> bool:
    return hasattr(request, "messages")


def make_app(
    engine: FakeEngine,
    policy: Policy | None = None,
    registry: CollectorRegistry | None = None,
    pinned: bool = False,
    ensembles: Sequence[str] = (ENSEMBLE,),
    rules: PolicyRules | None = None,
    upstreams: Mapping[str, UpstreamSettings] = {},
    recorder: Recorder | None = None,
    observers: Sequence[Observer] = (),
    access: AccessSettings | None = None,
    layers: Sequence[Layer] = (),
    aliases: Mapping[str, Weights] | None = None,
    shadows: Mapping[str, Shadow] | None = None,
    may_change: bool = True,
) -> FastAPI:
    """The routes as the server's plugin adds them, around the scripted engine."""
    metrics = Metrics(registry or CollectorRegistry())
    members = [f"{ENSEMBLE}/member-{member}" for member in range(len(engine.log_weights))]
    asked = Upstreams(upstreams, {}, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await rollout.shadows.aclose()
        await asked.aclose()
        if access is not None:
            await app.state.softspec_access.aclose()

    app = FastAPI(lifespan=lifespan)
    app.add_exception_handler(SoftspecError, respond_to_error)

    def models() -> list[str]:
        return [*ensembles, *members, "base"]

    app.state.softspec_rollout = rollout = Rollout(
        ensembles, models, Aliases(aliases), Shadows(shadows, metrics.shadow_ended), may_change
    )
    rollout.require_served()
    app.state.softspec_chat = Service(
        ensembles=ensembles,
        models=models,
        rules=rules or PolicyRules(policy or Policy(), tuple(upstreams), pinned=pinned),
        decode=spell,
        metrics=metrics,
        upstreams=asked,
        recorder=recorder,
        calibration=lambda _: engine.calibration,
        aliases=rollout.aliases,
        shadows=rollout.shadows,
    )
    routes = {
        "/v1/chat/completions": UpstreamRoute(ChatFields, engine.route),
        "/v1/completions": UpstreamRoute(TextFields, engine.route),
    }
    add_chat_routes(app, routes, checks=())
    add_rollout_routes(app, checks=())
    if access is not None:
        app.state.softspec_access = Access(access, {}, "127.0.0.1")
        app.add_middleware(Gate, respond=error_at)
        serve_beside(app)
    observe_with(app, observers, layers)
    return app


def client_of(app: FastAPI, key: str = "none") -> openai.OpenAI:
    """The official client, talking to the app in-process."""
    return openai.OpenAI(
        base_url="http://testserver/v1", api_key=key, http_client=TestClient(app), max_retries=0
    )
