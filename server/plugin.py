"""vLLM's endpoint plugin: our routes around vLLM's, our engine client in vLLM's handlers.

In: vLLM's app, engine client and state. Out: the same server, with ensembles among its models. The only file of
`server/` that imports vllm; it puts the parts together and decides nothing.
"""

import asyncio
import logging
import os
import sys
from argparse import Namespace
from functools import partial

import vllm
from fastapi import Depends, FastAPI
from pydantic import ConfigDict, field_validator
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from vllm import envs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.anthropic.api_router import create_messages
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.api_router import create_completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.api_router import create_responses
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from softspec.engine.front.client import EnsembleClient
from softspec.engine.front.ending import ending_of
from softspec.engine.front.ensemble import load_ensembles
from softspec.engine.front.handlers import (
    base_names,
    draw_one_token,
    has_chat_template,
    list_ensembles_first,
    model_names,
    put_into_handlers,
    token_decoder,
)
from softspec.engine.front.prompts import answer_ids, chat_end_id, chat_prompt_ids, text_prompt_ids
from softspec.engine.front.scoring import score_answers, score_options
from softspec.engine.front.sharing import share_lower_layers
from softspec.engine.front.trial import draw_unpublished
from softspec.engine.requirements import require_base, require_engine
from softspec.engine.start.arguments import accepted_arguments
from softspec.engine.start.flags import CONTENT_FLAGS, refuse_logged_content
from softspec.engine.start.log import share_log
from softspec.errors import SoftspecError
from softspec.server.access.access import Access
from softspec.server.access.callers import may_ask
from softspec.server.access.gate import Gate
from softspec.server.access.second_port import serve_beside
from softspec.server.chat.door import Door
from softspec.server.chat.guard import policy_guard
from softspec.server.chat.routes import UpstreamRoute, add_chat_routes
from softspec.server.chat.service import Service
from softspec.server.decisions.engine import DecisionEngine
from softspec.server.decisions.routes import add_decision_routes
from softspec.server.decisions.service import PATH as DECISIONS
from softspec.server.dialects.routes import add_dialect_routes, error_at
from softspec.server.ensembles.routes import add_ensemble_routes
from softspec.server.observe.content import Overhear
from softspec.server.observe.discretion import keep_content_out
from softspec.server.observe.export import tracer_provider
from softspec.server.observe.log import log_requests
from softspec.server.observe.middleware import Layer, Observer, observe_with
from softspec.server.observe.settings import LogSettings
from softspec.server.observe.tracing import PROVIDER, Traced
from softspec.server.ops.canary import canary_of
from softspec.server.ops.closing import close_with
from softspec.server.ops.death import end_when_dead
from softspec.server.ops.errors import respond_to_error, respond_to_http_error
from softspec.server.ops.loops import RefuseLoops
from softspec.server.ops.metrics import Metrics
from softspec.server.ops.place import Place
from softspec.server.ops.readiness import Readiness, obstacle
from softspec.server.ops.routes import add_ops_routes
from softspec.server.ops.second_signal import end_at_second_signal
from softspec.server.ops.served_base import served_fingerprint
from softspec.server.ops.settings import Settings
from softspec.server.ops.stopping import RefuseWhileStopping, Unanswered, limit_farewell
from softspec.server.ops.welcome import welcome
from softspec.server.page.routes import add_page_routes
from softspec.server.record.recorder import Recorder
from softspec.server.rollout.aliases import Aliases
from softspec.server.rollout.rollout import Rollout
from softspec.server.rollout.routes import add_rollout_routes
from softspec.server.rollout.shadows import Shadows
from softspec.server.scores.routes import PATH as SCORES
from softspec.server.scores.routes import add_score_routes
from softspec.server.scores.scorer import Scoring
from softspec.server.upstream.loop import require_elsewhere
from softspec.server.upstream.upstreams import Upstreams

_log = logging.getLogger(__name__)


class MessagesRequest(AnthropicMessagesRequest):
    """vLLM's, which drops the fields that it does not know and demands a model; here both are looked at later."""

    model_config = ConfigDict(extra="allow")
    model: str = ""

    @field_validator("model", mode="before")
    @classmethod
    def validate_model(cls, v: object) -> object:
        """In place of vLLM's check of the same name."""
        return "" if v is None else v


_COMPLETIONS = {
    "/v1/chat/completions": UpstreamRoute(ChatCompletionRequest, create_chat_completion),
    "/v1/completions": UpstreamRoute(CompletionRequest, create_completion),
}
_DIALECTS = {
    "/v1/responses": UpstreamRoute(ResponsesRequest, create_responses),
    "/v1/messages": UpstreamRoute(MessagesRequest, create_messages),
}


class SoftspecEndpoints:
    """What vLLM loads: an `EndpointPlugin` of `vllm.plugins.endpoint_plugins.interface`."""

    name = "softspec"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._observers: list[Observer] = []
        self._unanswered = Unanswered()
        self._layers: list[Layer] = []

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes; those of vLLM with the same path make way."""
        is_json = [Depends(validate_json_request)]
        add_chat_routes(app, _COMPLETIONS, is_json)
        add_decision_routes(app, is_json)
        add_score_routes(app, is_json)
        add_dialect_routes(app, _DIALECTS, is_json)
        add_ops_routes(app)
        add_page_routes(app)
        add_rollout_routes(app, is_json)
        # vLLM itself refuses this switch with several API servers, which would disagree on what is loaded.
        if envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
            add_ensemble_routes(app, is_json)
        app.add_exception_handler(SoftspecError, respond_to_error)
        app.add_exception_handler(HTTPException, respond_to_http_error)
        app.add_middleware(Door, followers=frozenset((*_COMPLETIONS, *_DIALECTS, SCORES, DECISIONS)))
        app.add_middleware(RefuseLoops)
        app.add_middleware(RefuseWhileStopping, unanswered=self._unanswered)
        app.add_middleware(Gate, respond=error_at)
        close_with(app)
        serve_beside(app)
        observe_with(app, self._observers, self._layers)

    async def init_state(self, engine_client: EngineClient, state: State, args: Namespace) -> None:
        """Load the ensembles, prepare the engine for them and put our client into vLLM's handlers.

        Raises:
            UserError: a setting, an ensemble or an engine option is wrong; the server does not start.
        """
        settings = Settings.from_environment(os.environ)
        settings.access.require_only_door(any(args.api_key or [envs.VLLM_API_KEY]))
        state.softspec_access = Access(settings.access, os.environ, args.host)
        await state.softspec_access.require_ready()
        ensembles = load_ensembles(settings.ensembles)
        settings.rules.require_followed({each.name: each.manifest.calibration for each in ensembles})
        share_log()
        self._observe(settings.log, engine_client, state, args)
        accepted_arguments(args, settings.allow_untested, in_use=True)
        if not args.uds:
            require_elsewhere(settings.upstreams, args.host, args.port)
        require_engine(vllm.__version__, engine_client.vllm_config, ensembles)
        model = engine_client.vllm_config.model_config
        base = served_fingerprint(model.model, model.revision, settings.base_unchecked)
        require_base(base, [ensemble.manifest for ensemble in ensembles])
        await engine_client.collective_rpc("install_ensemble_sampler")
        metrics = Metrics()
        self._observers.append(metrics.request_ended)
        state.softspec_ending = ending_of(engine_client)
        state.softspec_ending.until_idle = self._unanswered.wait
        state.softspec_ending.on_begin += [
            partial(limit_farewell, state),
            partial(end_at_second_signal, state, self._unanswered),
        ]
        if not envs.VLLM_KEEP_ALIVE_ON_ENGINE_DEATH:
            watch = end_when_dead(engine_client, state.softspec_ending, state)
            state.softspec_watch = asyncio.create_task(watch)
        client = EnsembleClient(
            engine_client,
            ensembles,
            base_names(state),
            may_run=policy_guard(settings.rules.default),
            may_ask=state.softspec_access.may_ask,
            on_failed=metrics.failed,
            on_preemption=metrics.group_preemption,
        )
        client.registry.base_fingerprint = base
        await client.registry.fill()
        if not settings.no_shared_layers:
            await share_lower_layers(client)
        metrics.expect(client.registry.lora_requests, client.registry.ensembles, settings.upstreams)
        state.softspec_upstreams = Upstreams(settings.upstreams, os.environ, metrics)
        record, recorder = settings.record, None
        if record is not None:
            recorder = Recorder(record.path, record.max_bytes, record.keep, metrics.record_failed)
        state.softspec_recorder = recorder
        put_into_handlers(client, engine_client, state)
        served, models = client.registry.ensembles, partial(model_names, client, state)
        state.softspec_rollout = rollout = Rollout(
            served,
            models,
            Aliases(settings.aliases),
            Shadows(settings.shadows, metrics.shadow_ended),
            may_change=settings.access.keys is not None or envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING,
        )
        rollout.require_served()
        state.softspec_ending.on_begin.append(rollout.shadows.end)
        list_ensembles_first(client, state, may_ask, rollout.aliases)
        state.softspec_registry = client.registry
        state.softspec_chat = Service(
            ensembles=served,
            models=models,
            rules=settings.rules,
            decode=token_decoder(engine_client),
            metrics=metrics,
            upstreams=state.softspec_upstreams,
            recorder=recorder,
            calibration=client.registry.calibration_of,
            aliases=rollout.aliases,
            shadows=rollout.shadows,
        )
        state.softspec_decisions = DecisionEngine(
            mixture_of=client.registry.spec_of,
            chat_prompt_ids=partial(chat_prompt_ids, state),
            chat_end_id=partial(chat_end_id, state),
            answer_ids=partial(answer_ids, state, ended=False),
            score_options=partial(score_options, client),
            max_model_len=model.max_model_len,
        )
        state.softspec_scoring = Scoring(
            text_prompt=partial(text_prompt_ids, state),
            chat_prompt=partial(chat_prompt_ids, state),
            chat_end=partial(chat_end_id, state),
            answer=partial(answer_ids, state),
            score=partial(score_answers, client),
        )
        state.softspec_canary = canary_of(partial(draw_unpublished, client))
        place = Place(
            args.host,
            args.port,
            args.uds,
            has_tls=bool(args.ssl_keyfile and args.ssl_certfile),
            needs_key=bool(args.api_key or envs.VLLM_API_KEY or settings.access.keys),
            has_chat=has_chat_template(engine_client, args.chat_template),
        )
        state.softspec_readiness = Readiness(
            served,
            canary_of(partial(draw_one_token, state)),
            partial(obstacle, engine_client, state.softspec_ending),
            on_ready=lambda: _log.info("%s", welcome(served, base_names(state), settings.rules, place)),
        )
        state.softspec_readiness.begin()

    def _observe(self, log: LogSettings, engine_client: EngineClient, state: State, args: Namespace) -> None:
        """Tell of every request what the settings want, and nothing of its content unless they do."""
        if log.content:
            self._layers.append(Overhear)
        else:
            on = [flag for flag in CONTENT_FLAGS if getattr(args, flag.removeprefix("--").replace("-", "_"))]
            refuse_logged_content(on, os.environ)
            keep_content_out()
        if log.requests:
            self._observers.append(log_requests(sys.stdout))
        state.softspec_traces = provider = tracer_provider(os.environ)
        if provider is not None:
            tracer, config = provider.get_tracer(PROVIDER), engine_client.vllm_config.observability_config
            traces_too = config.otlp_traces_endpoint is not None
            self._layers.append(partial(Traced, tracer=tracer, engine_traces=traces_too))
