"""A server is ready once every ensemble has answered its canary, and while nothing stands against it."""

import asyncio
from types import SimpleNamespace

import pytest

from softspec.engine.trace import ChoiceTrace, current_trace
from softspec.errors import EngineError
from softspec.server.ops.canary import canary_of
from softspec.server.ops.place import Place
from softspec.server.ops.readiness import Readiness, obstacle
from softspec.server.ops.welcome import welcome
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from tests.support.fake_engine import AGREED


def test_server_is_ready_once_every_ensemble_has_answered_its_canary() -> None:
    asked: list[str] = []

    async def canary(name: str) -> None:
        asked.append(name)

    async def scenario() -> tuple[str | None, str | None]:
        readiness = Readiness(["a", "b"], canary, obstacle=lambda: None)
        before = readiness.problem()
        await asyncio.sleep(0)
        return before, readiness.problem()

    before, after = asyncio.run(scenario())

    assert before == "the canary step of the ensembles has not finished"
    assert after is None
    assert asked == ["a", "b"]


def test_failed_canary_is_reported_and_tried_again() -> None:
    outcomes = iter([RuntimeError("engine is dead"), None])

    async def canary(_name: str) -> None:
        if (error := next(outcomes)) is not None:
            raise error

    async def scenario() -> tuple[str | None, str | None]:
        readiness = Readiness(["a"], canary, obstacle=lambda: None)
        readiness.begin()
        await asyncio.sleep(0)
        failed = readiness.problem()
        await asyncio.sleep(0)
        return failed, readiness.problem()

    assert asyncio.run(scenario()) == ("the canary step failed: engine is dead", None)


def test_whoever_waits_for_the_canaries_hears_that_one_failed() -> None:
    async def canary(name: str) -> None:
        if name == "b":
            raise RuntimeError("engine is dead")

    async def scenario() -> None:
        readiness = Readiness(["a", "b"], canary, obstacle=lambda: None)
        readiness.begin()
        await readiness.wait()

    with pytest.raises(RuntimeError, match="engine is dead"):
        asyncio.run(scenario())


def test_draining_server_is_not_ready() -> None:
    async def canary(_name: str) -> None:
        return None

    readiness = Readiness(["a"], canary, obstacle=lambda: "the server is shutting down")

    assert readiness.problem() == "the server is shutting down"


@pytest.mark.parametrize(
    ("errored", "begun", "reason"),
    [
        (False, False, None),
        (False, True, "the server is shutting down"),
        (True, False, "the engine has died"),
        (True, True, "the server is shutting down"),
    ],
)
def test_dead_engines_and_stopping_servers_take_no_traffic(
    errored: bool, begun: bool, reason: str | None
) -> None:
    assert obstacle(SimpleNamespace(errored=errored), SimpleNamespace(begun=begun)) == reason


def test_server_says_once_that_it_is_ready_what_it_serves_and_which_policy_holds() -> None:
    told: list[str] = []
    ensembles = {"jurists": SimpleNamespace(manifest=SimpleNamespace(num_members=4))}

    async def canary(_name: str) -> None:
        assert not told

    async def scenario() -> None:
        rules = PolicyRules(Policy("abstain", "max_epistemic", 0.5), pinned=True)
        place = Place("127.0.0.1", 8000)
        readiness = Readiness(
            ensembles,
            canary,
            lambda: None,
            on_ready=lambda: told.append(welcome(ensembles, ["base"], rules, place)),
        )
        readiness.begin()
        for _ in range(3):
            await asyncio.sleep(0)
            readiness.problem()

    asyncio.run(scenario())

    assert told == [
        "softspec is ready: serves 'jurists' (4 members: 'jurists/member-0', ...) on the base 'base'\n"
        "  at http://127.0.0.1:8000; GET /ready says so too\n"
        "  policy 'abstain' once max_epistemic is above 0.5, which requests may only tighten\n"
        "  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' "
        """-d '{"model": "jurists", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32}'"""
    ]


def test_canary_that_brings_no_uncertainty_is_a_failure() -> None:
    async def draw_one_token(_name: str) -> None:
        trace = current_trace.get()
        assert trace is not None
        trace.choices[0] = ChoiceTrace(tokens=list(drawn))

    async def scenario() -> None:
        await canary_of(draw_one_token)("jurists")

    drawn = AGREED[:1]
    asyncio.run(scenario())

    drawn = ()
    with pytest.raises(EngineError, match="'jurists' answers without uncertainty"):
        asyncio.run(scenario())
