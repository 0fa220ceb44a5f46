"""Every route of vLLM that could answer for an ensemble: what it would ignore or guess is settled before it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from tests.support.other_routes import FOLLOWERS, GENERATING, OURS, READ_ONLY
from tests.support.scripted_core import Said, ScriptedAsyncLLM
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

BASE = "tiny-base"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    ensemble = random_adapters(tiny_llama(folder / BASE), folder / NAME, num_members=2)
    with serving(ensemble, "--enable-scale-out", engine_of=ScriptedAsyncLLM) as server:
        server.engine.play([Said("a"), Said("b"), Said("c")])
        server.wait_until_ready()
        yield server


def other_routes(server: Server) -> list[str]:
    """The path of every POST route that vLLM or we have, but for those that carry the field."""
    routes = [route for route in server.app.routes if isinstance(route, APIRoute) and "POST" in route.methods]
    return sorted({route.path for route in routes} - {*FOLLOWERS, *OURS})


@pytest.mark.parametrize("model", [NAME, f"{NAME}/member-0", BASE, None])
def test_field_is_refused_by_name_on_every_route_that_does_not_carry_it(
    server: Server, model: str | None
) -> None:
    core = server.engine.play([Said("a")])
    policy = {"action": "abstain", "metric": "total_entropy", "threshold": 0}

    for path in other_routes(server):
        body = {**GENERATING.get(path, {}), "model": model, "uncertainty": {"policy": policy}}
        answer = server.post(path.replace("{response_id}", "resp_1"), body)

        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "uncertainty"), path
        assert path in answer.json()["error"]["message"]
    assert core.said == []


def test_routes_that_generate_are_all_known_here(server: Server) -> None:
    """A route of a new vLLM that takes a model's name must be looked at: does it generate?"""
    naming = set()
    for route in server.app.routes:
        if isinstance(route, APIRoute) and route.body_field:
            kind: Any = route.body_field.field_info.annotation
            if '"title": "Model"' in json.dumps(TypeAdapter(kind).json_schema()):
                naming.add(route.path)

    known = {
        *FOLLOWERS,
        *GENERATING,
        *READ_ONLY,
        "/v1/decisions",
        "/v1/systemone",
    }  # the last one answers for no model of ours
    assert {path for path in naming if not path.endswith(("/render", "/derender"))} == known - {
        "/invocations"
    }


@pytest.mark.parametrize("path", [path for path in GENERATING if path != "/generative_scoring"])
def test_other_routes_answer_for_the_ensemble_while_no_policy_forbids_it(server: Server, path: str) -> None:
    core = server.engine.play([Said("a"), Said("b"), Said("c")])

    answer = server.post(path, {**GENERATING[path], "model": NAME})

    assert answer.status_code == 200, answer.text
    assert core.said
    assert all("softspec" in (state.request.sampling_params.extra_args or {}) for state in core.said)
    assert "uncertainty" not in answer.text


@pytest.mark.parametrize("named", [{}, {"model": None}, {"model": ""}], ids=["absent", "null", "empty"])
@pytest.mark.parametrize(
    "path", [path for path in (*FOLLOWERS, *GENERATING) if path != "/generative_scoring"]
)
def test_request_that_names_no_model_gets_the_only_ensemble(
    server: Server, path: str, named: dict[str, Any]
) -> None:
    core = server.engine.play([Said("a"), Said("b"), Said("c")])

    answer = server.post(path, {**FOLLOWERS, **GENERATING}[path] | named)

    assert answer.status_code == 200, answer.text
    assert answer.json().get("model", NAME) == NAME
    assert core.said
    assert all("softspec" in (state.request.sampling_params.extra_args or {}) for state in core.said)


@pytest.mark.parametrize(
    ("header", "body", "expected"),
    [
        (None, NAME, NAME),
        (None, BASE, BASE),
        (NAME, BASE, NAME),
        (BASE, None, BASE),
        (f"{NAME}/member-1", None, f"{NAME}/member-1"),
    ],
)
def test_alias_of_another_host_asks_the_model_of_its_header_or_body(
    server: Server, header: str | None, body: str | None, expected: str
) -> None:
    server.engine.play([Said("a")])
    headers = {"X-Amzn-SageMaker-Adapter-Identifier": header} if header else {}

    answer = server.run(
        server.http.post("/invocations", json={**GENERATING["/invocations"], "model": body}, headers=headers)
    )

    assert (answer.status_code, answer.json()["model"]) == (200, expected)


@pytest.mark.parametrize("path", [*FOLLOWERS, *GENERATING, *READ_ONLY])
def test_model_that_is_not_served_is_a_404_that_lists_what_is(server: Server, path: str) -> None:
    body = {**FOLLOWERS, **GENERATING, **READ_ONLY}[path]

    answer = server.post(path, {**body, "model": "tiny-ensemble-2"})

    assert answer.status_code == 404
    assert f"expected one of {NAME}, {NAME}/member-0" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 3000], ids=repr)
def test_what_is_no_object_is_left_to_the_route(server: Server, body: bytes) -> None:
    headers = {"content-type": "application/json"}

    answer = server.run(server.http.post("/tokenize", content=body, headers=headers))

    assert 400 <= answer.status_code < 500


def test_escaped_name_of_the_field_is_the_same_name(server: Server) -> None:
    body = json.dumps({**GENERATING["/invocations"], "model": NAME})[:-1] + ', "\\u0075ncertainty": {}}'

    answer = server.run(
        server.http.post("/invocations", content=body, headers={"content-type": "application/json"})
    )

    assert answer.json()["error"]["param"] == "uncertainty"
