"""vLLM's real HTTP layer, tokenizer and registry around our plugin; only the engine behind them is scripted."""

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Iterator
from typing import Any
from unittest.mock import patch

import httpx2
import openai
import pytest
from prometheus_client import REGISTRY

from server.launch import server_arguments, server_environment
from server.policy import Policy
from server.settings import Settings
from softspec.engine.group import KEY, GroupSpec
from softspec.manifest import BlockActivation, load_manifest
from tests.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

NAME = "tiny-ensemble"
WORDS = ["yes", "it", "is"]
HELLO: Any = [{"role": "user", "content": "hello"}]
# Member 0 believes the second word, member 1 does not; what the engine reports of each token.
MEMBER_LOG_PROBS = ((-1.0, -1.0), (-0.1, -5.0), (-0.2, -0.2))
EPISTEMIC = (0.1, 0.6, 0.2)
STRICT = {"action": "abstain", "metric": "max_epistemic", "threshold": 0.5}


class FakeAsyncLLM:
    """Stands in for vLLM's engine: says WORDS to everything, with telemetry columns when a group was asked for."""

    errored = False
    is_running = True

    def __init__(self, config: Any) -> None:
        from vllm.renderers.registry import renderer_from_config
        from vllm.v1.engine.input_processor import InputProcessor

        self.vllm_config = config
        self.model_config = config.model_config
        self.renderer = renderer_from_config(config)
        self.input_processor = InputProcessor(config, self.renderer)
        self.tokens = [self.renderer.tokenizer.encode(" " + word)[0] for word in WORDS]
        self.prepared: list[str] = []
        self.loras: list[str | None] = []
        self.aborted = 0
        self.broken = False

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        return None

    async def collective_rpc(self, method: str) -> list[str]:
        self.prepared.append(method)
        return [method]

    async def check_health(self) -> None:
        return None

    async def generate(
        self, prompt: Any, params: Any, request_id: str, *, lora_request: Any = None, **_: Any
    ) -> AsyncGenerator[Any, None]:
        from vllm.outputs import CompletionOutput, RequestOutput
        from vllm.sampling_params import RequestOutputKind

        self.loras.append(lora_request.lora_name if lora_request else None)
        wire = (params.extra_args or {}).get(KEY)
        spec = GroupSpec.from_wire(wire) if wire else None
        last = min(len(WORDS), params.max_tokens) - 1
        whole = params.output_kind != RequestOutputKind.DELTA
        finished = False
        try:
            for step in [last] if whole else range(last + 1):
                steps = range(last + 1) if whole else [step]
                completion = CompletionOutput(
                    index=0,
                    text="".join(" " + WORDS[i] for i in steps),
                    token_ids=[self.tokens[i] for i in steps],
                    cumulative_logprob=0.0,
                    logprobs=self._logprobs(steps, spec, params),
                    finish_reason=("error" if self.broken else "stop") if step == last else None,
                )
                finished = step == last
                yield RequestOutput(
                    request_id, "prompt", prompt["prompt_token_ids"], None, [completion], finished=finished
                )
        finally:
            self.aborted += not finished

    def _logprobs(self, steps: Any, spec: GroupSpec | None, params: Any) -> Any:
        from vllm.logprobs import FlatLogprobs

        if spec is None:
            return None
        rows = FlatLogprobs()
        for i in steps:
            members = MEMBER_LOG_PROBS[i][: spec.num_members]
            numbers = [0.5 + EPISTEMIC[i], 0.5, EPISTEMIC[i], EPISTEMIC[i], 0.5, *members]
            top = [self.tokens[i]] * spec.num_top
            ids = [self.tokens[i], *top, *[0] * len(numbers)]
            log_prob = math.log(sum(map(math.exp, members)) / len(members))
            values = [log_prob] * (1 + spec.num_top) + numbers
            assert len(ids) == 1 + params.logprobs
            rows.append_fast(ids, values, [1] * len(ids), [None] * len(ids))  # type: ignore[arg-type]
        return rows


class Server:
    """The app, its engine, and one event loop for all tests."""

    def __init__(self, runner: asyncio.Runner, app: Any, engine: FakeAsyncLLM) -> None:
        self._runner = runner
        self.app = app
        self.engine = engine
        transport = httpx2.ASGITransport(app=app)
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://server")
        self.client = openai.AsyncOpenAI(
            base_url="http://server/v1", api_key="none", http_client=self.http, max_retries=0
        )

    def chat(self, **fields: Any) -> Any:
        return self._runner.run(
            self.client.chat.completions.create(**{"model": NAME, "messages": HELLO, **fields})
        )

    def complete(self, **fields: Any) -> Any:
        return self._runner.run(
            self.client.completions.create(**{"model": NAME, "prompt": "hello", **fields})
        )

    def stream(self, **fields: Any) -> list[Any]:
        async def collect() -> list[Any]:
            chunks = await self.client.chat.completions.create(
                **{"model": NAME, "messages": HELLO, "stream": True, **fields}
            )
            return [chunk async for chunk in chunks]

        return self._runner.run(collect())

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._runner.run(self.http.post(path, json=body))

    def get(self, path: str) -> Any:
        return self._runner.run(self.http.get(path))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    base = tiny_llama(tmp_path_factory.mktemp("models") / "tiny-base")
    ensemble = random_adapters(
        base, tmp_path_factory.mktemp("ensemble"), num_members=2, activation=BlockActivation()
    )
    arguments = server_arguments({ensemble: load_manifest(ensemble)}, None, ["--disable-log-stats"])
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", arguments[0], *arguments[1:]])

    async def start(engine: FakeAsyncLLM) -> Any:
        app = build_app(args, ("generate",), engine.model_config)
        await init_app_state(engine, app.state, args, ("generate",))  # type: ignore[arg-type]
        return app

    environment = {**server_environment(Settings((ensemble,)), {}), "HF_HUB_OFFLINE": "1"}
    with patch.dict(os.environ, environment), asyncio.Runner() as runner:
        engine = FakeAsyncLLM(AsyncEngineArgs.from_cli_args(args).create_engine_config())
        yield Server(runner, runner.run(start(engine)), engine)


def test_models_are_the_base_the_ensemble_and_each_member(server: Server) -> None:
    models = [model["id"] for model in server.get("/v1/models").json()["data"]]

    assert models == ["tiny-base", NAME, f"{NAME}/member-0", f"{NAME}/member-1"]


def test_engine_is_prepared_once_at_start(server: Server) -> None:
    assert server.engine.prepared == ["install_ensemble_sampler"]


def test_server_becomes_ready_after_its_canary_and_is_healthy(server: Server) -> None:
    answers = (server.get("/ready") for _ in range(1000))

    assert next(answer.json() for answer in answers if answer.status_code == 200) == {"status": "ready"}
    assert server.get("/health").status_code == 200


def test_server_that_drains_asks_for_no_more_traffic(server: Server) -> None:
    class Stopping:
        should_exit = True

    server.app.state.server = Stopping()
    answer = server.get("/ready")
    del server.app.state.server

    assert answer.status_code == 503
    assert answer.json() == {"status": "not ready", "reason": "the server is shutting down"}


def test_chat_answer_carries_the_uncertainty_of_the_mixture(server: Server) -> None:
    choice = server.chat(extra_body={"uncertainty": {"detail": "tokens"}}).choices[0]

    assert choice.message.content == " yes it is"
    assert choice.uncertainty["member_log_probs"] == pytest.approx([-1.3, -6.2])
    assert choice.uncertainty["max_epistemic"] == 0.6
    assert len(choice.uncertainty["tokens"]) == 3
    assert choice.uncertainty["tokens"][0]["token"] == " "


def test_seed_of_the_caller_is_the_seed_that_replays(server: Server) -> None:
    assert server.chat(seed=1234).choices[0].uncertainty["seed"] == 1234


def test_logprobs_are_those_of_the_mixture_without_telemetry(server: Server) -> None:
    content = server.chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content

    expected = [math.log((math.exp(a) + math.exp(b)) / 2) for a, b in MEMBER_LOG_PROBS]
    assert [token.logprob for token in content] == pytest.approx(expected)


def test_streamed_answer_equals_the_whole_one(server: Server) -> None:
    whole = server.chat(seed=7).choices[0]

    chunks = server.stream(seed=7)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].choices[0].uncertainty == whole.uncertainty


def test_stream_that_abstains_aborts_the_engine(server: Server) -> None:
    before = server.engine.aborted

    chunks = server.stream(
        extra_body={"uncertainty": {"policy": STRICT}}, stream_options={"include_usage": True}
    )

    finish, usage = chunks[-2].choices[0], chunks[-1].usage
    assert finish.finish_reason == "content_filter"
    assert finish.uncertainty["reason"] == "max_epistemic 0.60 > 0.50"
    assert "it" not in "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert (usage.completion_tokens, usage.total_tokens) == (2, usage.prompt_tokens + 2)
    assert server.engine.aborted == before + 1


def test_text_completions_have_the_field_too(server: Server) -> None:
    choices = server.complete(prompt=["one", "two"]).choices

    assert [choice.uncertainty["num_tokens"] for choice in choices] == [3, 3]


@pytest.mark.parametrize("model", ["tiny-base", f"{NAME}/member-1"])
def test_single_models_answer_without_the_field(server: Server, model: str) -> None:
    answer = server.chat(model=model)

    assert answer.choices[0].message.content == " yes it is"
    assert not hasattr(answer.choices[0], "uncertainty")
    assert server.engine.loras[-1] == (None if model == "tiny-base" else f"{model}#2")


@pytest.mark.parametrize("field", ["prompt_logprobs", "use_beam_search", "uncertanty", "prompt_embeds"])
def test_unsupported_fields_are_refused_in_openais_envelope(server: Server, field: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        server.chat(extra_body={field: 1})

    assert (refusal.value.param, refusal.value.type) == (field, "BadRequestError")


def test_unknown_model_is_a_404_of_vllm(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        server.chat(model="tiny-ensemble/member-9")


def test_routes_without_the_policy_refuse_ensembles_when_the_server_has_one(server: Server) -> None:
    """Otherwise an answer that the operator wants withheld would leave by /v1/responses."""
    client = server.app.state.openai_serving_responses.engine_client

    with patch.object(client, "_policy", Policy("abstain", "epistemic", 0.1)):
        refused = server.post("/v1/responses", {"model": NAME, "input": "hello"})
        answered = server.post("/v1/responses", {"model": "tiny-base", "input": "hello"})

    assert "does not follow the server's policy" in refused.json()["error"]["message"]
    assert (refused.status_code, answered.status_code) == (400, 200)


def test_request_ended_by_the_engine_is_named_and_counted(server: Server) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("softspec_lockstep_errors_total") or 0.0

    before = counted()
    server.engine.broken = True
    try:
        with pytest.raises(openai.InternalServerError, match="members came apart"):
            server.chat()
        with pytest.raises(openai.APIError, match="members came apart"):
            server.stream()
    finally:
        server.engine.broken = False

    assert counted() == before + 2


def test_our_metrics_stand_beside_vllms(server: Server) -> None:
    server.chat()

    page = server.get("/metrics").text
    assert 'softspec_requests_total{decision="answer"}' in page
    assert "http_requests_total" in page
