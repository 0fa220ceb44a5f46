"""One request, one decision: streamed or whole, in chunks of any size, and nothing is computed after it.

vLLM's own front end runs here, from HTTP to its output processor; the engine core behind it follows a script.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from softspec.maths.answer import METRICS
from tests.support.scripted_core import Said, ScriptedAsyncLLM
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = pytest.mark.vllm

LENGTH = 12


def script(
    letters: str, epistemic: Sequence[float], members: Sequence[tuple[float, float]] = ()
) -> list[Said]:
    members = members or [(-1.0, -1.0)] * len(letters)
    return [Said(*each) for each in zip(letters, epistemic, members, strict=True)]


CALM = script("abcdefghijkl", [0.05] * LENGTH)
# Only the first token is unsure: a mean over all of them is small.
EARLY = script("abcdefghijkl", [0.6] + [0.01] * 11)
# Unsure in the middle, then sure again; the belief goes to one member at the fourth token and comes back at the fifth.
HUMP = script(
    "abcdefghijkl",
    [0.05, 0.1, 0.5, 0.9, 0.4] + [0.01] * 7,
    [(-1.0, -1.0)] * 3 + [(-0.1, -6.0), (-6.0, -0.1)] + [(-1.0, -1.0)] * 7,
)
SCRIPTS = {"calm": CALM, "early": EARLY, "hump": HUMP}
POLICIES = [
    {"metric": "epistemic", "threshold": 0.3},
    {"metric": "epistemic", "threshold": 0.2},
    {"metric": "epistemic", "threshold": 0.3, "min_tokens": 3},
    {"metric": "max_epistemic", "threshold": 0.5},
    {"metric": "mutual_information", "threshold": 0.35},
    {"metric": "disagreement", "threshold": 0.2, "min_tokens": 2},
    {"metric": "total_entropy", "threshold": 0.7},
    {"metric": "aleatoric_entropy", "threshold": 0.4},
    {"metric": "max_disagreement", "threshold": 0.44},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tiny_llama(tmp_path_factory.mktemp("models") / "tiny-base")
    folder = tmp_path_factory.mktemp("ensemble")
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with serving(random_adapters(base, folder, num_members=2), *tools, engine_of=ScriptedAsyncLLM) as server:
        server.engine.play(CALM)
        server.wait_until_ready()
        yield server


def judged(policy: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"extra_body": {"uncertainty": {"policy": {"action": "abstain", **policy}}}, **fields}


def expected_decision(said: Sequence[Said], policy: dict[str, Any]) -> int | None:
    """The binding rule, written out: the first prefix from min_tokens on whose metric is above the threshold."""
    for end in range(policy.get("min_tokens", 1), len(said) + 1):
        if metric_of(said[:end], policy["metric"]) > policy["threshold"]:
            return end
    return None


def metric_of(prefix: Sequence[Said], metric: str) -> float:
    """A metric from its definition, by numpy where a posterior is needed."""
    epistemic = np.array([said.epistemic for said in prefix])
    numbers = {
        "epistemic": epistemic.mean(),
        "max_epistemic": epistemic.max(),
        "disagreement": epistemic.mean() / 2,
        "max_disagreement": epistemic.max() / 2,
        "total_entropy": 0.5 + epistemic.mean(),
        "aleatoric_entropy": 0.5,
    }
    if metric == "mutual_information":
        joint = np.exp(np.array([said.members for said in prefix]).sum(axis=0))
        weights = joint / joint.sum()
        return float((weights * np.log(weights / 0.5)).sum())
    return float(numbers[metric])


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: " ".join(map(str, policy.values())))
@pytest.mark.parametrize("name", SCRIPTS)
def test_streamed_and_whole_answers_are_decided_alike(
    server: Server, name: str, policy: dict[str, Any]
) -> None:
    expected = expected_decision(SCRIPTS[name], policy)

    server.engine.play(SCRIPTS[name])
    whole = server.chat(**judged(policy, max_tokens=LENGTH, seed=1)).choices[0]
    server.engine.play(SCRIPTS[name])
    chunk = server.stream(**judged(policy, max_tokens=LENGTH, seed=1))[-1].choices[0]

    assert whole.uncertainty["decided_at"] == expected
    assert whole.uncertainty == chunk.uncertainty
    assert whole.uncertainty["num_tokens"] == (expected or LENGTH)


def test_every_metric_has_an_independent_definition_here() -> None:
    assert {policy["metric"] for policy in POLICIES} == set(METRICS)


@pytest.mark.parametrize("max_tokens", [3, 5, 9, 12])
def test_length_that_was_allowed_changes_no_decision(server: Server, max_tokens: int) -> None:
    server.engine.play(EARLY)

    choice = server.chat(**judged({"metric": "epistemic", "threshold": 0.3}, max_tokens=max_tokens)).choices[
        0
    ]

    assert choice.uncertainty["reason"] == "epistemic 0.60 > 0.30 at token 1"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_generation_stops_at_the_token_that_decides(server: Server, stream: bool) -> None:
    core = server.engine.play(HUMP)
    fields = judged({"metric": "max_epistemic", "threshold": 0.45}, max_tokens=LENGTH)

    if stream:
        usage = server.stream(**fields, stream_options={"include_usage": True})[-1].usage
    else:
        usage = server.chat(**fields).usage

    assert usage.completion_tokens == 3
    assert core.said[0].said == 3
    assert core.aborted == [core.said[0].request.request_id]


def test_no_policy_no_stop(server: Server) -> None:
    core = server.engine.play(HUMP)

    choice = server.chat(max_tokens=LENGTH).choices[0]

    assert choice.message.content == "abcdefghijkl"
    assert (core.said[0].said, core.aborted) == (LENGTH, [])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_other_choices_go_on_when_one_is_withheld(server: Server, stream: bool) -> None:
    core = server.engine.play(CALM, HUMP, EARLY)
    fields = judged({"metric": "max_epistemic", "threshold": 0.45}, max_tokens=LENGTH, n=3)

    if stream:
        chunks = [choice for chunk in server.stream(**fields) for choice in chunk.choices]
        last = {choice.index: choice for choice in chunks if choice.finish_reason}
        texts = ["".join(c.delta.content or "" for c in chunks if c.index == index) for index in range(3)]
    else:
        last = {choice.index: choice for choice in server.chat(**fields).choices}
        texts = [last[index].message.content for index in range(3)]

    assert [last[index].uncertainty["decided_at"] for index in range(3)] == [None, 3, 1]
    assert texts == ["abcdefghijkl", "ab" if stream else None, "" if stream else None]
    assert [state.said for state in core.said] == [LENGTH, 3, 1]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_prompts_times_samples_are_decided_each_for_itself(server: Server, stream: bool) -> None:
    core = server.engine.play(CALM, HUMP, EARLY, CALM)
    fields = judged({"metric": "epistemic", "threshold": 0.3}, max_tokens=LENGTH, n=2, prompt=["x", "y"])

    if stream:
        last = {
            choice.index: choice
            for chunk in server.complete_stream(**fields)
            for choice in chunk.choices
            if choice.finish_reason
        }
    else:
        last = {choice.index: choice for choice in server.complete(**fields).choices}

    decided = [
        expected_decision(said, {"metric": "epistemic", "threshold": 0.3}) for said in (CALM, HUMP, EARLY)
    ]
    assert [last[index].uncertainty["decided_at"] for index in range(4)] == [*decided, None]
    assert [state.said for state in core.said] == [LENGTH, *decided[1:], LENGTH]


@pytest.mark.parametrize("burst", [1, 2, 5, LENGTH])
@pytest.mark.parametrize("name", SCRIPTS)
def test_chunks_of_several_tokens_change_nothing(server: Server, name: str, burst: int) -> None:
    """A reader that falls behind gets several tokens at once, the one that decides among them."""
    policy = {"metric": "epistemic", "threshold": 0.25, "min_tokens": 2}
    server.engine.play(SCRIPTS[name], burst=burst)
    fields = judged(policy, max_tokens=LENGTH, seed=1, stream_options={"include_usage": True})

    chunks = server.stream(**fields)

    last, usage = chunks[-2].choices[0], chunks[-1].usage
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    expected = expected_decision(SCRIPTS[name], policy)
    assert last.uncertainty["decided_at"] == expected
    assert usage.completion_tokens == last.uncertainty["num_tokens"] == (expected or LENGTH)
    assert len(text) < expected if expected else text == "abcdefghijkl"


def test_token_that_ends_a_stop_string_is_judged_as_every_other(server: Server) -> None:
    server.engine.play(HUMP)
    kept = server.chat(**judged({"metric": "max_epistemic", "threshold": 0.45}, stop="ab")).choices[0]
    server.engine.play(HUMP)
    withheld = server.chat(**judged({"metric": "max_epistemic", "threshold": 0.45}, stop="bc")).choices[0]

    assert (kept.message.content, kept.stop_reason) == ("", "ab")
    assert kept.uncertainty["num_tokens"] == 2
    assert (withheld.message.content, withheld.stop_reason) == (None, "abstained")
    assert withheld.uncertainty["decided_at"] == 3


def test_last_token_of_the_allowed_length_still_decides(server: Server) -> None:
    core = server.engine.play(HUMP)

    choice = server.chat(**judged({"metric": "max_epistemic", "threshold": 0.45}, max_tokens=3)).choices[0]

    assert (choice.finish_reason, choice.uncertainty["decided_at"]) == ("stop", 3)
    assert core.aborted == []


def test_answer_shorter_than_min_tokens_is_not_judged(server: Server) -> None:
    server.engine.play(EARLY)

    choice = server.chat(
        **judged({"metric": "epistemic", "threshold": 0.0, "min_tokens": 6}, max_tokens=5)
    ).choices[0]

    assert choice.uncertainty["decision"] == "answer"


CALL = '{"name": "paint", "arguments": {"c": "red"}}'


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("tool_choice", "text"),
    [
        ("auto", f"<tool_call>{CALL}</tool_call>"),
        ("required", f"[{CALL}]"),
        ({"type": "function", "function": {"name": "paint"}}, '{"c": "red"}'),
    ],
    ids=["auto", "required", "named"],
)
def test_tool_call_that_is_cut_off_is_a_refusal_and_no_error(
    server: Server, tool_choice: Any, text: str, stream: bool
) -> None:
    """The parser of tool calls sees half a call, ended as if by a stop token."""
    at = len(text) - 3
    server.engine.play([Said(letter, 0.9 if number == at else 0.1) for number, letter in enumerate(text)])
    tool = {"type": "function", "function": {"name": "paint", "parameters": {"type": "object"}}}
    fields = judged({"metric": "max_epistemic", "threshold": 0.5}, max_tokens=99, tools=[tool])

    if stream:
        last = server.stream(**fields, tool_choice=tool_choice)[-1].choices[0]
        message = last.delta
    else:
        last = server.chat(**fields, tool_choice=tool_choice).choices[0]
        message = last.message

    assert (last.finish_reason, last.uncertainty["decided_at"]) == ("stop", at + 1)
    assert f"at token {at + 1}" in message.refusal
    assert not message.tool_calls


def test_requests_of_one_id_at_the_same_time_keep_their_own_judges(server: Server) -> None:
    async def both() -> list[Any]:
        ask = server.client.chat.completions.create
        fields: Any = {
            "model": NAME,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": LENGTH,
            "extra_headers": {"X-Request-Id": "same"},
        }
        strict = judged({"metric": "max_epistemic", "threshold": 0.45})
        return list(await asyncio.gather(ask(**fields, **strict), ask(**fields), ask(**fields, **strict)))

    server.engine.play(HUMP)

    answers = server.run(both())

    assert [answer.choices[0].uncertainty["decided_at"] for answer in answers] == [3, None, 3]
