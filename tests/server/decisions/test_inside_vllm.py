"""Decisions inside vLLM's real HTTP layer, renderer and front end; only the engine core follows a script."""

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.support import oracle
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.vllm

BASE = "tiny-base"
PREDICATE: Any = {"type": "predicate", "name": "allowed", "instructions": "It is allowed."}
CHOICE: Any = {
    "type": "choice",
    "instructions": "Which?",
    "choices": [{"value": "no"}, {"value": "no idea"}, {"value": "ü🦊"}, {"value": True}],
}
TOKENIZER = tiny_tokenizer()


def belief(before: Sequence[int], token: int, member: int) -> float:
    """What a member thinks of a token after others; some function that tells them all apart."""
    seen = sum((place + 1) * each for place, each in enumerate(before))
    return -0.05 - (seen * 31 + token * 7 + member * 13) % 97 / 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from tests.support.scripted_core import Said, ScriptedAsyncLLM

    folder = tmp_path_factory.mktemp("models")
    ensemble = random_adapters(tiny_llama(folder / BASE), folder / NAME, num_members=2)
    with serving(ensemble, engine_of=ScriptedAsyncLLM) as server:
        server.engine.play([Said("a")])
        server.wait_until_ready()
        server.engine.engine_core.believes = belief
        yield server


def decide(server: Server, *questions: Any, **fields: Any) -> Any:
    fields = {"model": NAME, "input": "May I?", **fields}
    return server.run(server.client.decisions.create(questions=questions, **fields))


def probabilities(text: str, options: Sequence[str]) -> list[list[float]]:
    """Each member's probability of each option after one message of a user; a bar ends the turn."""
    prompt = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    before = TOKENIZER.encode(prompt, add_special_tokens=False)

    def probability(option: str, member: int) -> float:
        ids = TOKENIZER.encode(option.replace("|", TOKENIZER.eos_token), add_special_tokens=False)
        return math.exp(sum(belief([*before, *ids[:step]], token, member) for step, token in enumerate(ids)))

    return [[probability(option, member) for option in options] for member in range(2)]


def test_official_client_gets_what_the_members_think_of_the_whole_options(server: Server) -> None:
    question = "May I?\n\nWhich?\n\nOptions:\n- no\n- no idea\n- ü🦊\n- true\n\nAnswer with one option only."
    members = probabilities(question, ["no|", "no idea", "ü🦊", "true"])

    answer = decide(server, PREDICATE, CHOICE).answers[1]

    mixture = oracle.mix(members, [0.5, 0.5])
    mass = [sum(member) for member in members]
    inside = [[p / total for p in member] for member, total in zip(members, mass, strict=True)]
    behind = [total / sum(mass) for total in mass]
    assert [each.value for each in answer.probabilities] == ["no", "no idea", "ü🦊", True]
    assert [each.probability for each in answer.probabilities] == pytest.approx(
        [p / sum(mixture) for p in mixture]
    )
    told = answer.uncertainty
    assert told["label_mass"] == pytest.approx(min(sum(mixture), 1))
    assert told["member_probabilities"] == [pytest.approx(member) for member in inside]
    assert told["epistemic"] == pytest.approx(oracle.mutual_information(inside, behind))


def test_question_may_be_asked_as_in_training(server: Server) -> None:
    """The conversation is then nothing but the row of the training data, up to the answer."""
    members = probabilities("May I?", ["yes", "no"])

    answer = decide(server, {**PREDICATE, "instructions": ""}, extra_body={"list_options": False}).answers[0]

    yes, no = oracle.mix(members, [0.5, 0.5])
    assert answer.probability == pytest.approx(yes / (yes + no))


def test_one_member_is_asked_alone(server: Server) -> None:
    members = probabilities("May I?", ["yes", "no"])

    answer = decide(
        server,
        {**PREDICATE, "instructions": ""},
        model=f"{NAME}/member-1",
        extra_body={"list_options": False},
    ).answers[0]

    # The script tells members apart by their place in the group, where this one is the first.
    assert answer.probability == pytest.approx(members[0][0] / sum(members[0]))


def test_policy_acts_at_the_route_that_follows_it(server: Server) -> None:
    policy = {"action": "abstain", "metric": "total_entropy", "threshold": 0}

    answer = decide(server, CHOICE, extra_body={"uncertainty": {"policy": policy}}).answers[0]

    assert answer.type == "refusal"


def test_request_without_a_model_asks_the_only_ensemble(server: Server) -> None:
    answer = server.post("/v1/decisions", {"input": "x", "questions": [PREDICATE]})

    assert (answer.status_code, answer.json()["model"]) == (200, NAME)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"questions": [{**PREDICATE, "nmae": "x"}]}, "questions.0.nmae"),
        ({"questions": [{"type": "predicate"}]}, "questions.0.instructions"),
        ({"model": BASE, "questions": [PREDICATE]}, "model"),
        ({"questions": [{**PREDICATE, "instructions": "x" * 1100}]}, None),
    ],
)
def test_mistakes_have_vllms_envelope(server: Server, body: Any, field: str | None) -> None:
    answer = server.post("/v1/decisions", {"model": NAME, "input": "x", **body})

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"]
    if field is not None:
        assert (error["param"], error["type"], "\n" in error["message"]) == (field, "BadRequestError", False)


@pytest.mark.parametrize("content", ["{", "[]", "null", '"x"'])
def test_body_that_is_no_object_is_a_bad_request(server: Server, content: str) -> None:
    answer = server.run(
        server.http.post("/v1/decisions", content=content, headers={"content-type": "application/json"})
    )

    assert answer.status_code == 400


def test_client_that_goes_away_takes_all_its_groups_along(server: Server) -> None:
    core = server.engine.engine_core
    questions = [{**PREDICATE, "instructions": str(number)} for number in range(60)]
    body = json.dumps({"model": NAME, "input": "x", "questions": questions}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/decisions",
        "raw_path": b"/v1/decisions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("server", 80),
        "client": ("client", 1),
        "root_path": "",
    }

    async def leave() -> None:
        core.said.clear()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            while not core.said:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            """Nobody is there."""

        await server.app(scope, receive, send)
        for _ in range(100):
            await asyncio.sleep(0)

    server.run(leave())

    assert 0 < len(core.said) < 60
    assert not core.running


def test_route_is_described_for_tools_that_read_the_schema(server: Server) -> None:
    schema = server.get("/openapi.json").json()

    body = schema["paths"]["/v1/decisions"]["post"]["requestBody"]
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert {"input", "questions", "uncertainty"} <= set(schema["components"]["schemas"][name]["properties"])
