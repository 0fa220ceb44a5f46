"""vLLM's real HTTP layer, tokenizer and registry around our plugin; only the engine behind them is scripted.

In: ensemble directories and flags. Out: a `Server` to ask.
"""

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import httpx2
import openai
from prometheus_client import REGISTRY

from softspec.artefact.manifest import load_manifest
from softspec.engine.wire import KEY, GroupSpec
from softspec.server.access.settings import AccessSettings
from softspec.server.observe.settings import LogSettings
from softspec.server.ops.launch import server_arguments, server_environment
from softspec.server.ops.settings import Settings
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from softspec.server.rollout.aliases import Weights
from softspec.server.rollout.settings import Shadow

T = TypeVar("T")

NAME = "tiny-ensemble"
WORDS = ["yes", "it", "is"]
HELLO: Any = [{"role": "user", "content": "hello"}]
# Member 0 believes the second word, member 1 does not; what the engine reports of each token.
MEMBER_LOG_PROBS = ((-1.0, -1.0), (-0.1, -5.0), (-0.2, -0.2))
EPISTEMIC = (0.1, 0.6, 0.2)


class FakeAsyncLLM:
    """Stands in for vLLM's engine: says WORDS, or what is forced, with telemetry columns when a group was asked for.

    `resident` are the adapters that it holds: number -> name. It cannot read the one whose path ends in `unreadable`,
    and gives none back while `stuck`. `broken` is the `stop_reason` with which it ends every request in an error, if
    any.
    """

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
        self.prepared: list[tuple[Any, ...]] = []
        self.loras: list[str | None] = []
        self.aborted = 0
        self.broken: str | None = None
        self.resident: dict[int, str] = {}
        self.unreadable = ""
        self.stuck = False
        self.output_processor: Any = self
        self.stopped_after: float | None = None
        self.told: list[Exception] = []
        self.began, self.loading, self.tried = (asyncio.Event() for _ in range(3))
        self.may_load, self.may_answer, self.may_be_tried = (asyncio.Event() for _ in range(3))
        for event in (self.may_load, self.may_answer, self.may_be_tried):
            event.set()

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        return None

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self.prepared.append((method, *args))
        return [None]

    async def add_lora(self, lora_request: Any) -> bool:
        self.loading.set()
        await self.may_load.wait()
        if self.unreadable and lora_request.lora_path.endswith(self.unreadable):
            raise Exception(f"Call to add_lora method failed: {lora_request.lora_path} is cut off")
        self.resident[lora_request.lora_int_id] = lora_request.lora_name
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        if self.stuck:
            raise Exception("Call to remove_lora method failed")
        return self.resident.pop(lora_id, None) is not None

    def shutdown(self, timeout: float | None = None) -> None:
        self.stopped_after = timeout

    def propagate_error(self, error: Exception) -> None:
        self.told.append(error)

    def add_request(self, request: Any, *_: Any, **__: Any) -> None:
        raise AssertionError("it makes whole outputs, of which no processor is told")

    process_outputs = add_request

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
        if spec:
            # As vLLM's worker, which reads an adapter that it lacks.
            self.resident |= {adapter.int_id: adapter.name for adapter in spec.adapters}
        is_trial = request_id.startswith("trial-")
        (self.tried if is_trial else self.began).set()
        may_go_on = self.may_be_tried if is_trial else self.may_answer
        forced = spec.forced if spec else ()
        tokens, words = (forced, [""] * len(forced)) if forced else (self.tokens, [f" {w}" for w in WORDS])
        last = min(len(tokens), params.max_tokens) - 1
        whole = params.output_kind != RequestOutputKind.DELTA
        finished = False
        try:
            for step in [last] if whole else range(last + 1):
                await may_go_on.wait()
                steps = range(last + 1) if whole else [step]
                completion = CompletionOutput(
                    index=0,
                    text="".join(words[i] for i in steps),
                    token_ids=[tokens[i] for i in steps],
                    cumulative_logprob=0.0,
                    logprobs=self._logprobs(steps, tokens, spec, params),
                    finish_reason=None if step < last else "stop" if self.broken is None else "error",
                    stop_reason=None if step < last else self.broken,
                )
                finished = step == last
                yield RequestOutput(
                    request_id, "prompt", prompt["prompt_token_ids"], None, [completion], finished=finished
                )
        finally:
            self.aborted += not finished

    def _logprobs(self, steps: Any, tokens: Any, spec: GroupSpec | None, params: Any) -> Any:
        from vllm.logprobs import FlatLogprobs

        if spec is None:
            return None
        rows = FlatLogprobs()
        for i in steps:
            epistemic = EPISTEMIC[i % len(WORDS)]
            members = MEMBER_LOG_PROBS[i % len(WORDS)][: spec.num_members]
            watched = spec.watched_at(i)
            numbers = [0.5 + epistemic, 0.5, epistemic, 0.5, *members, *members * len(watched)]
            top = [tokens[i]] * spec.num_top
            ids = [tokens[i], *top, *[0] * (4 + len(members)), *[w for w in watched for _ in members]]
            log_prob = math.log(sum(map(math.exp, members)) / len(members))
            values = [log_prob] * (1 + spec.num_top) + numbers
            assert len(ids) <= 1 + params.logprobs  # a step may watch fewer tokens than another
            rows.append_fast(ids, values, [1] * len(ids), [None] * len(ids))
        return rows


class _Bridge(httpx2.BaseTransport):
    """Carries a blocking client's requests into the loop in which the app lives."""

    def __init__(self, loop: asyncio.AbstractEventLoop, http: httpx2.AsyncClient) -> None:
        self._loop = loop
        self._http = http

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        ask = self._http.request(request.method, request.url, content=request.read(), headers=request.headers)
        answer = asyncio.run_coroutine_threadsafe(ask, self._loop).result()
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


class Server:
    """The app, its engine, and one event loop for all tests."""

    def __init__(self, runner: asyncio.Runner, app: Any, engine: Any) -> None:
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

    def complete_stream(self, **fields: Any) -> list[Any]:
        async def collect() -> list[Any]:
            chunks = await self.client.completions.create(
                **{"model": NAME, "prompt": "hello", "stream": True, **fields}
            )
            return [chunk async for chunk in chunks]

        return self._runner.run(collect())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def blocking(self, work: Callable[[httpx2.Client], T]) -> T:
        """Run what a program without asyncio does; its client reaches the app from another thread."""

        async def in_thread() -> T:
            bridge = _Bridge(asyncio.get_running_loop(), self.http)
            with httpx2.Client(transport=bridge, base_url="http://server") as client:
                return await asyncio.to_thread(work, client)

        return self._runner.run(in_thread())

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._runner.run(self.http.post(path, json=body))

    def get(self, path: str) -> Any:
        return self._runner.run(self.http.get(path))

    def wait_until_ready(self) -> None:
        """The canaries tokenize in a thread, which may take longer than any number of questions.

        Raises:
            TimeoutError: the server did not become ready within a minute.
        """

        async def poll() -> None:
            async with asyncio.timeout(60):
                while (await self.http.get("/ready")).status_code != 200:
                    await asyncio.sleep(0.01)

        self._runner.run(poll())


@contextmanager
def serving(
    ensemble: Path,
    *flags: str,
    policy: Policy | None = None,
    rules: PolicyRules | None = None,
    engine_of: Callable[[Any], Any] | None = None,
    unreadable: str = "",
    access: AccessSettings | None = None,
    log: LogSettings | None = None,
    aliases: Mapping[str, Weights] | None = None,
    shadows: Mapping[str, Shadow] | None = None,
    beside: Sequence[Path] = (),
    **environment: str,
) -> Iterator[Server]:
    """A server that was started with this ensemble; one at a time, as they count in the same metrics.

    `beside` are more ensembles. `engine_of` makes the engine from vLLM's config; by default the fake of this module,
    which cannot read the adapter whose path ends in `unreadable`.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    manifests = {path: load_manifest(path) for path in (ensemble, *beside)}
    arguments = server_arguments(manifests, None, ["--disable-log-stats", *flags])
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", arguments[0], *arguments[1:]])

    async def start(engine: Any) -> Any:
        app = build_app(args, ("generate",), engine.model_config)
        await init_app_state(engine, app.state, args, ("generate",))
        return app

    settings = Settings(
        (ensemble, *beside),
        rules or PolicyRules(policy or Policy()),
        access=access or AccessSettings(),
        log=log or LogSettings(),
        aliases=aliases or {},
        shadows=shadows or {},
    )
    variables = {
        **server_environment(settings, {}),
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    metrics_before = set(REGISTRY._collector_to_names)
    with patch.dict(os.environ, variables), asyncio.Runner() as runner:
        engine = (engine_of or FakeAsyncLLM)(AsyncEngineArgs.from_cli_args(args).create_engine_config())
        engine.unreadable = unreadable
        try:
            yield Server(runner, runner.run(start(engine)), engine)
        finally:
            for metric in set(REGISTRY._collector_to_names) - metrics_before:
                REGISTRY.unregister(metric)
