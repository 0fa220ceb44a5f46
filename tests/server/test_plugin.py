"""Our plugin inside vLLM's real HTTP layer: what callers of the routes see, and what reaches the engine."""

import asyncio
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from prometheus_client import REGISTRY

from softspec.artefact.activation import BlockActivation
from softspec.engine.wire import LOCKSTEP_FAILED
from tests.server.chat.test_foreign import OPENAI_PASSES
from tests.support.scripted_vllm import HELLO, MEMBER_LOG_PROBS, NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

STRICT = {"action": "abstain", "metric": "max_epistemic", "threshold": 0.5}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tiny_llama(tmp_path_factory.mktemp("models") / "tiny-base")
    folder = tmp_path_factory.mktemp("ensemble")
    with serving(random_adapters(base, folder, num_members=2, activation=BlockActivation())) as server:
        yield server


def test_models_are_the_ensemble_each_member_and_the_base(server: Server) -> None:
    """A chat window takes the first; each is told with its own directory and the longest text it reads."""
    models = server.get("/v1/models").json()["data"]

    roots = [model["root"].rpartition("/") for model in models]
    assert [model["id"] for model in models] == [NAME, f"{NAME}/member-0", f"{NAME}/member-1", "tiny-base"]
    assert [root[2] for root in roots[1:]] == ["member-0", "member-1", "tiny-base"]
    assert roots[1][0] == models[0]["root"]
    assert [model["max_model_len"] for model in models] == [1024] * 4
    assert [model["parent"] for model in models] == ["tiny-base"] * 3 + [None]


def test_an_ensembles_entry_tells_how_its_members_are_weighed(server: Server) -> None:
    """With the members' log-probabilities of every token a caller can follow the weights through an answer."""
    ensemble, *others = server.get("/v1/models").json()["data"]

    assert ensemble["softspec"]["weights_rule"] == "prefix_posterior"
    assert ensemble["softspec"]["log_weights"] == pytest.approx([math.log(0.5)] * 2)
    assert not any("softspec" in other for other in others)


def test_engine_is_prepared_once_at_start(server: Server) -> None:
    assert server.engine.prepared == [
        ("install_ensemble_sampler",),
        ("share_lower_layers", 1),
        ("share_lower_layers", 4),
    ]


def test_server_becomes_ready_after_its_canary_and_is_healthy(server: Server) -> None:
    server.wait_until_ready()

    assert server.get("/ready").json() == {"status": "ready"}
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v1/nothing", 404, "GET /v1/nothing is not served: check the path"),
        ("/v1/completions", 405, "GET /v1/completions is not served: expected POST"),
    ],
)
def test_path_or_method_that_is_not_served_is_an_error_in_openais_envelope(
    server: Server, path: str, status: int, message: str
) -> None:
    answer = server.get(path)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["message"]) == (status, status, message)


def test_server_takes_no_more_requests_from_the_moment_that_its_engine_is_told_to_stop(
    server: Server,
) -> None:
    """vLLM calls `shutdown` of the engine first, in a thread; what follows may take as long as the answers."""
    during: list[tuple[int, Any]] = []

    async def look() -> None:
        for request in (
            server.http.get("/ready"),
            server.http.get("/health"),
            server.http.post("/v1/chat/completions", json={"model": NAME, "messages": HELLO}),
            server.http.post("/v1/completions", json={"model": "tiny-base", "prompt": "hello"}),
            server.http.post("/v1/responses", json={"model": NAME, "input": "hello"}),
        ):
            answer = await request
            during.append((answer.status_code, answer.json() if answer.content else None))

    async def stop() -> None:
        state = server.app.state
        state.server = SimpleNamespace(config=SimpleNamespace(timeout_graceful_shutdown=None))
        await asyncio.to_thread(server.engine.shutdown, timeout=20)
        await look()
        assert state.server.config.timeout_graceful_shutdown == 5

    server.run(stop())
    server.app.state.softspec_ending.begun = False
    del server.app.state.server

    (ready, why), (health, _), *refused = during
    assert (ready, why["reason"], health) == (503, "the server is shutting down", 200)
    assert [code for code, _ in refused] == [503] * 3
    assert refused[0][1]["error"]["type"] == "ServiceUnavailableError"
    # Whoever still waits hears of the end.
    assert ["shutting down" in str(error) for error in server.engine.told] == [True]


@pytest.mark.parametrize(("patience", "may_take"), [(60, 5), (0.01, 0)], ids=["in time", "too late"])
def test_engine_is_told_to_stop_once_all_is_answered_or_the_time_is_over(
    server: Server, patience: float, may_take: int
) -> None:
    """A request may need the engine again, or an upstream for longer than the engine has anything to do."""
    asked = server.http.post("/v1/chat/completions", json={"model": NAME, "messages": HELLO})

    async def stop() -> tuple[int, float | None]:
        server.engine.stopped_after = None
        server.engine.began.clear()
        server.engine.may_answer.clear()
        answer = asyncio.create_task(asked)
        await server.engine.began.wait()
        stopped = asyncio.create_task(asyncio.to_thread(server.engine.shutdown, timeout=patience))
        if may_take == 0:
            await stopped
        while not server.app.state.softspec_ending.begun:
            await asyncio.sleep(0)
        told_before = server.engine.stopped_after
        server.engine.may_answer.set()
        status = (await answer).status_code
        await stopped
        return status, told_before

    status, told_before = server.run(stop())
    server.app.state.softspec_ending.begun = False

    assert (status, told_before) == (200, None if may_take else 0)
    assert server.engine.stopped_after == may_take


def test_weights_of_every_member_are_read_at_start(server: Server) -> None:
    assert {f"{NAME}/member-0#1", f"{NAME}/member-1#2"} <= set(server.engine.resident.values())


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
    assert (finish.finish_reason, finish.stop_reason) == ("stop", "abstained")
    assert finish.uncertainty["reason"] == "max_epistemic 0.60 > 0.50 at token 2"
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


def test_openais_fields_that_change_nothing_pass_through_vllms_own_models(server: Server) -> None:
    passing = {field: value for field, value in OPENAI_PASSES.items() if field != "best_of"}

    assert server.chat(user="u", extra_body=passing).choices[0].message.content == " yes it is"
    assert server.complete(best_of=1, user="u").choices[0].text == " yes it is"


@pytest.mark.parametrize("route", ["load_ensemble", "unload_ensemble", "load_lora_adapter"])
def test_nothing_is_loaded_by_http_unless_the_server_allows_it(server: Server, route: str) -> None:
    assert server.post(f"/v1/{route}", {"path": "anywhere", "name": NAME}).status_code == 404


def test_unknown_model_is_a_404_of_vllm(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        server.chat(model="tiny-ensemble/member-9")


def test_request_ended_by_the_engine_is_named_and_counted(server: Server) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("softspec_lockstep_errors_total", {"model": NAME}) or 0.0

    before = counted()
    server.engine.broken = LOCKSTEP_FAILED
    try:
        with pytest.raises(openai.InternalServerError, match="members came apart"):
            server.chat()
        with pytest.raises(openai.APIError, match="members came apart"):
            server.stream()
    finally:
        server.engine.broken = None

    assert counted() == before + 2


def test_our_metrics_stand_beside_vllms(server: Server) -> None:
    server.chat()

    page = server.get("/metrics").text
    assert 'softspec_choices_total{decision="answer",model="tiny-ensemble"}' in page
    assert "http_requests_total" in page
    assert 'softspec_request_seconds_count{model="tiny-ensemble"}' in page
    assert 'softspec_requests_total{decision="route",model="tiny-ensemble"} 0.0' in page
