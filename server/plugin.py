"""vLLM's endpoint plugin: our routes around vLLM's, our engine client in vLLM's handlers.

In: vLLM's app, engine client and state. Out: the same server, with ensembles among its models. The only file of
`server/` that imports vllm.
"""

import os
from argparse import Namespace
from collections.abc import AsyncGenerator, Collection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import vllm
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.datastructures import State
from vllm import envs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.generate.base.serving import decode_token_ids
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.api_router import create_completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.outputs import RequestOutput

from softspec.engine.front.client import EnsembleClient
from softspec.engine.front.registry import Ensemble, Registry, load_ensembles
from softspec.engine.start.requirements import require_engine
from softspec.engine.trace import RequestTrace, current_trace
from softspec.errors import ConfigError, EngineError, LockstepError, SoftspecError
from softspec.server.chat.service import Service, complete
from softspec.server.ensembles.wire import LoadEnsembleRequest, UnloadEnsembleRequest
from softspec.server.ops.errors import respond_to_error
from softspec.server.ops.metrics import Metrics
from softspec.server.ops.readiness import Readiness
from softspec.server.ops.settings import Settings
from softspec.server.policy.policy import Policy


class SoftspecEndpoints:
    """Satisfies `vllm.plugins.endpoint_plugins.interface.EndpointPlugin`."""

    name = "softspec"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes; those of vLLM with the same path make way."""
        is_json = [Depends(validate_json_request)]
        app.add_api_route("/v1/chat/completions", chat_completions, methods=["POST"], dependencies=is_json)
        app.add_api_route("/v1/completions", text_completions, methods=["POST"], dependencies=is_json)
        app.add_api_route("/ready", ready, methods=["GET"])
        # vLLM itself refuses this switch with several API servers, which would disagree on what is loaded.
        if envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
            app.add_api_route("/v1/load_ensemble", load_ensemble, methods=["POST"], dependencies=is_json)
            app.add_api_route("/v1/unload_ensemble", unload_ensemble, methods=["POST"], dependencies=is_json)
            for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
                app.add_api_route(path, refuse_single_adapter, methods=["POST"])
        app.add_exception_handler(SoftspecError, respond_to_error)

    async def init_state(self, engine_client: EngineClient, state: State, args: Namespace) -> None:
        """Load the ensembles, prepare the engine for them and put our client into vLLM's handlers.

        Raises:
            UserError: a setting, an ensemble or an engine option is wrong; the server does not start.
        """
        settings = Settings.from_environment(os.environ)
        ensembles = load_ensembles(settings.ensembles)
        require_engine(vllm.__version__, engine_client.vllm_config, ensembles)
        await engine_client.collective_rpc("install_ensemble_sampler")
        metrics = Metrics()
        base_names = [model.name for model in state.openai_serving_models.base_model_paths]
        client = WatchedClient(engine_client, ensembles, base_names, metrics, settings.policy)
        _register_models(state, client.registry)
        _replace_client(state, engine_client, client)
        served = client.registry.ensembles
        readiness = Readiness(served, _Canary(state), _Obstacle(state, engine_client))
        tokenizer = engine_client.renderer.tokenizer
        state.softspec = Service(
            ensembles=served,
            default_policy=settings.policy,
            decode=lambda token_id: decode_token_ids([token_id], tokenizer)[0][0],
            metrics=metrics,
            readiness=readiness,
        )
        state.softspec_registry = client.registry
        readiness.begin()


async def chat_completions(request: ChatCompletionRequest, raw_request: Request) -> Response:
    """vLLM's chat completions; on an ensemble with the `uncertainty` field."""
    return await complete(request, raw_request, create_chat_completion, raw_request.app.state.softspec)


async def text_completions(request: CompletionRequest, raw_request: Request) -> Response:
    """vLLM's completions; on an ensemble with the `uncertainty` field."""
    return await complete(request, raw_request, create_completion, raw_request.app.state.softspec)


async def ready(raw_request: Request) -> JSONResponse:
    """Whether to send traffic here: 200, or 503 with the reason."""
    problem = raw_request.app.state.softspec.readiness.problem()
    if problem is None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready", "reason": problem}, status_code=503)


async def load_ensemble(request: LoadEnsembleRequest, raw_request: Request) -> PlainTextResponse:
    """Serve one more ensemble, or replace one; the answer comes when new requests go to it."""
    registry: Registry = raw_request.app.state.softspec_registry
    ensemble = await registry.load(Path(request.path), request.replace)
    return PlainTextResponse(f"Success: ensemble '{ensemble.name}' added successfully.")


async def unload_ensemble(request: UnloadEnsembleRequest, raw_request: Request) -> PlainTextResponse:
    """Serve an ensemble no longer; the answers that it has begun are finished."""
    registry: Registry = raw_request.app.state.softspec_registry
    await registry.unload(request.name)
    return PlainTextResponse(f"Success: ensemble '{request.name}' removed successfully.")


async def refuse_single_adapter() -> None:
    """In place of vLLM's routes, whose adapters would take the members' numbers and room in the engine."""
    raise ConfigError("single adapters cannot be served beside ensembles: use /v1/load_ensemble instead")


class WatchedClient(EnsembleClient):
    """The ensembles' engine client, for all of vLLM's routes.

    A request that the engine had to end is counted and named. Where the server has a policy, only the routes that
    follow it may ask an ensemble.
    """

    def __init__(
        self,
        engine: EngineClient,
        ensembles: Collection[Ensemble],
        base_names: Collection[str],
        metrics: Metrics,
        policy: Policy,
    ) -> None:
        super().__init__(engine, ensembles, base_names, metrics.group_preemption)
        self._metrics = metrics
        self._policy = policy

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As `EnsembleClient.generate`.

        Raises:
            ConfigError: the server's policy would not be followed.
            LockstepError: while iterating, if the engine ended the request.
        """
        lora_request = kwargs.get("lora_request")
        if lora_request is None or lora_request.lora_name not in self.registry.ensembles:
            return super().generate(prompt, sampling_params, request_id, **kwargs)
        if self._policy.action != "answer" and current_trace.get() is None:
            raise ConfigError(
                f"this route does not follow the server's policy '{self._policy.action}': ask "
                f"'{lora_request.lora_name}' at /v1/chat/completions or /v1/completions"
            )
        return self._watch(super().generate(prompt, sampling_params, request_id, **kwargs), request_id)

    async def _watch(
        self, outputs: AsyncGenerator[RequestOutput, None], request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        try:
            async for output in outputs:
                if any(completion.finish_reason == "error" for completion in output.outputs):
                    self._metrics.lockstep_error()
                    raise LockstepError(
                        f"request {request_id} was ended because its members came apart: send it again, and "
                        "report it with the server's log if it happens again"
                    )
                yield output
        finally:
            await outputs.aclose()


class _Canary:
    """One token of each ensemble, through the whole server but HTTP."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def __call__(self, name: str) -> None:
        trace = RequestTrace()
        token = current_trace.set(trace)
        try:
            request = CompletionRequest(model=name, prompt="Ready?", max_tokens=1, temperature=0)
            answer = await self._state.openai_serving_completion.create_completion(request)
        finally:
            current_trace.reset(token)
        if isinstance(answer, ErrorResponse):
            raise EngineError(f"ensemble '{name}' does not answer: {answer.error.message}")
        if [len(choice.tokens) for choice in trace.choices.values()] != [1]:
            raise EngineError(
                f"ensemble '{name}' answers without uncertainty: found no telemetry for its token"
            )


class _Obstacle:
    """A reason to take no traffic that does not need a canary to be seen."""

    def __init__(self, state: State, engine_client: EngineClient) -> None:
        self._state = state
        self._engine_client = engine_client

    def __call__(self) -> str | None:
        if self._engine_client.errored:
            return "the engine has died"
        server = getattr(self._state, "server", None)
        return "the server is shutting down" if server is not None and server.should_exit else None


def _register_models(state: State, registry: Registry) -> None:
    """Let vLLM look up its LoRA models in ours, always as they are; only we change them."""
    models = state.openai_serving_models
    if models.lora_requests:
        # vLLM numbered these from 1, as we number members; one number must not mean two adapters.
        raise ConfigError(
            f"--lora-modules {sorted(models.lora_requests)} cannot be served beside an ensemble"
        )
    models.lora_requests = MappingProxyType(registry.lora_requests)


def _replace_client(state: State, engine_client: EngineClient, client: EnsembleClient) -> None:
    """In every handler that vLLM made: chat, completions, responses, messages, tokens."""
    for handler in vars(state)["_state"].values():
        if getattr(handler, "engine_client", None) is engine_client:
            handler.engine_client = client
    # This one keeps further references to the engine and would answer an ensemble's name with a single model.
    state.serving_structured_decisions = None
