"""Scores of answers that a real ensemble wrote: every number is the one that came with the answer."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from softspec.artefact.activation import BlockActivation
from softspec.server.policy.policy import Policy
from tests.support.request_log import request_lines
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import SPECIAL_TOKENS, random_adapters, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.vllm

END = SPECIAL_TOKENS.index("<|im_end|>")
LETTERS = tiny_tokenizer().encode("abcdefghijklmnopqrstuvwxyz ", add_special_tokens=False)
READABLE = {str(token): 60 for token in (*LETTERS, END)}
"""A bias is in no number. It keeps a random model's answers to letters, which are drawn again as they are read."""
VERDICT = ("seed", "decision", "reason", "decided_at", "upstream", "fields")
ANSWERING = {"detail": "tokens", "policy": {"action": "answer"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
LONG = {"role": "user", "content": "a question longer than a block of thirty-two tokens"}
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "system", "content": "Be brief"}, LONG]}),
    "template": ("/v1/chat/completions", {"messages": [LONG], "chat_template_kwargs": {"mood": "good"}}),
    "tools": ("/v1/chat/completions", {"messages": [LONG], "tools": [TOOL], "tool_choice": "none"}),
    "text": ("/v1/completions", {"prompt": "once"}),
    "ids": ("/v1/completions", {"prompt": [*range(3, 70)]}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real engine behind the real HTTP layer; its policy would withhold every answer."""
    from vllm.v1.engine.async_llm import AsyncLLM

    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "tiny-base")
    ensemble = random_adapters(
        base, folder / NAME, num_members=3, seed=3, activation=BlockActivation(block_size=32)
    )
    flags = ("--enforce-eager", "--max-model-len", "256", "--num-gpu-blocks-override", "60")
    policy = Policy("abstain", "total_entropy", 0.0)
    with serving(ensemble, *flags, policy=policy, engine_of=AsyncLLM.from_vllm_config) as server:
        yield server
        server.run(_stop(server.engine))


async def _stop(engine: Any) -> None:
    engine.shutdown()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def written(server: Server, route: str, **fields: Any) -> tuple[dict[str, Any], str]:
    """A choice that the ensemble writes, and its text."""
    path, body = ROUTES[route]
    asked = {"model": NAME, "max_tokens": 12, "logit_bias": READABLE, "uncertainty": ANSWERING}
    answer = server.post(path, {**asked, **body, **fields})
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice, choice["message"]["content"] if "message" in choice else choice["text"]


def scored(
    server: Server, route: str, *answers: str, model: str = NAME, **fields: Any
) -> list[dict[str, Any]]:
    body = {"model": model, **ROUTES[route][1], "answers": answers, "detail": "tokens"}
    answer = server.post("/v1/uncertainty", {**body, **fields})
    assert answer.status_code == 200, answer.text
    scores: list[dict[str, Any]] = answer.json()["scores"]
    return scores


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every field that both have, to 1e-4, and no others than the verdict on an answer that is written."""
    assert found.keys() - {"index"} == expected.keys() - set(VERDICT)
    for name in found.keys() - {"index", "tokens"}:
        assert found[name] == pytest.approx(expected[name], abs=1e-4), name
    for mine, its in zip(found["tokens"], expected["tokens"], strict=True):
        assert mine.keys() == its.keys()
        for name in mine:
            assert mine[name] == pytest.approx(its[name], abs=1e-4), name


@pytest.mark.parametrize("route", ROUTES)
def test_a_written_answer_scored_again_has_its_numbers(server: Server, route: str) -> None:
    """Greedy and sampled, ended by itself and cut off."""
    ways: list[dict[str, Any]] = [
        {"temperature": 0},
        *({"temperature": 1.5, "seed": seed} for seed in range(8)),
    ]
    choices = [written(server, route, **way) for way in ways]
    reasons = {choice["finish_reason"] for choice, _ in choices}

    for reason in reasons:
        ended_so = [(choice, text) for choice, text in choices if choice["finish_reason"] == reason]
        scores = scored(server, route, *(text for _, text in ended_so), finish_reason=reason)
        for number, ((choice, _), score) in enumerate(zip(ended_so, scores, strict=True)):
            assert score["index"] == number
            assert_same(score, choice["uncertainty"])

    assert reasons == {"stop", "length"}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("model", [NAME, f"{NAME}/member-0", "tiny-base"])
def test_what_an_answer_cost_the_engine_is_its_usage(server: Server, route: str, model: str) -> None:
    """Rows of members, and columns of telemetry, are no tokens of anybody's."""
    path, body = ROUTES[route]
    asked = {"model": model, "max_tokens": 12, "n": 2, "logit_bias": READABLE, **body}
    if model == NAME:
        asked["uncertainty"] = ANSWERING

    with request_lines() as lines:
        usage = server.post(path, asked).json()["usage"]

    (line,) = lines
    assert (line["prompt_tokens"], line["completion_tokens"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def test_a_member_alone_scores_an_answer_as_it_would_write_it(server: Server) -> None:
    """A member's own answer has no numbers; the ensemble's has its log-probability under each member."""
    choice, text = written(server, "chat", temperature=0)

    for k in range(3):
        (score,) = scored(
            server, "chat", text, model=f"{NAME}/member-{k}", finish_reason=choice["finish_reason"]
        )
        expected = choice["uncertainty"]["member_log_probs"][k]
        assert score["member_log_probs"] == pytest.approx([expected], abs=1e-4)
        assert score["log_prob"] == pytest.approx(expected, abs=1e-4)
        assert score["mutual_information"] == score["disagreement"] == 0


def test_an_empty_answer_is_the_end_token_alone(server: Server) -> None:
    (score,) = scored(server, "chat", "")

    assert [token["token_id"] for token in score["tokens"]] == [END]


def test_what_a_stop_string_cut_off_belongs_to_the_answer_that_is_scored(server: Server) -> None:
    choice, text = written(server, "text", temperature=1.5, seed=1, stop=["e", "a", "o", "t"])
    assert choice["stop_reason"] in ("e", "a", "o", "t")

    (score,) = scored(server, "text", text + choice["stop_reason"], finish_reason="length")

    assert_same(score, choice["uncertainty"])


def test_text_that_is_read_as_other_tokens_shows_it_in_their_number(server: Server) -> None:
    """Half a character was drawn as one token; its text, U+FFFD, is three."""
    choice, text = written(server, "text", logit_bias={}, temperature=2.0, seed=0, ignore_eos=True)
    assert "\ufffd" in text

    (score,) = scored(server, "text", text, finish_reason="length")

    assert score["num_tokens"] > choice["uncertainty"]["num_tokens"]


def test_answers_that_do_not_fit_are_refused_by_their_place(server: Server) -> None:
    body = {**ROUTES["text"][1], "answers": ["fits", "a" * 300]}

    error = server.post("/v1/uncertainty", body).json()["error"]

    assert (error["code"], error["param"]) == (400, "answers.1")
    assert "256" in error["message"]


@pytest.mark.parametrize("prompt", [[320], "a" * 300], ids=["no token of the model", "too long"])
def test_what_vllm_refuses_of_a_completion_is_a_400(server: Server, prompt: Any) -> None:
    answer = server.post("/v1/uncertainty", {"prompt": prompt, "answers": ["b"]})

    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "BadRequestError")


def test_answers_are_counted_and_not_as_requests(server: Server) -> None:
    def counted() -> float:
        page = server.get("/metrics").text
        line = next(line for line in page.splitlines() if line.startswith("softspec_scored_answers_total{"))
        return float(line.split()[-1])

    before = counted()
    scored(server, "text", "a", "b")

    assert counted() == before + 2
