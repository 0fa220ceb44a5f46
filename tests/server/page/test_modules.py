"""The page's arithmetic is the server's, and its reader of streams reads them however they are cut."""

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Browser

from softspec.artefact.manifest import WeightsRule
from softspec.engine.trace import ChoiceTrace
from softspec.maths.answer import METRICS, TokenUncertainty, summarise
from softspec.server.chat.wire import token_reports
from softspec.server.policy.policy import Policy
from softspec.server.policy.running import RunningDecision
from tests.support.page_server import PageServer
from tests.support.visitor import Visitor

pytestmark = pytest.mark.slow

ANSWER = (
    "const answer = new m.Answer('e', {num_members: a[0].length, log_weights: a[0], weights_rule: a[1]});"
)
TAKE = (
    "answer.take({choices: [{delta: {content: ''}, uncertainty: {tokens: a[2]}}]}); answer.end('finished');"
)


@pytest.fixture(scope="module")
def visitor(browser: Browser, running: PageServer) -> Iterator[Visitor]:
    visitor = Visitor(browser, running.url)
    yield visitor
    visitor.leave()


def random_answer(seed: int) -> tuple[list[float], list[TokenUncertainty]]:
    """A prior over two to five members, and up to forty tokens that some of them may be unable to say."""
    draw = random.Random(seed)
    shares = [draw.random() + 0.01 for _ in range(draw.randint(2, 5))]
    log_weights = [math.log(share / sum(shares)) for share in shares]
    tokens = [
        TokenUncertainty(
            token_id=0,
            log_prob=-1.0,
            total_entropy=draw.random() * 3,
            aleatoric_entropy=draw.random(),
            epistemic=draw.random() ** 3,
            disagreement=draw.random(),
            member_log_probs=(-draw.random() * 4, *(_log_prob(draw) for _ in shares[1:])),
        )
        for _ in range(draw.randint(1, 40))
    ]
    return log_weights, tokens


def _log_prob(draw: random.Random) -> float:
    return -math.inf if draw.random() < 0.02 else -draw.random() * 4


def as_sent(tokens: Sequence[TokenUncertainty]) -> list[dict[str, Any]]:
    return token_reports(tokens, lambda _: ("x", [120]))


@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
@pytest.mark.parametrize("seed", range(20))
def test_belief_and_information_are_those_of_the_summary(
    seed: int, rule: WeightsRule, visitor: Visitor
) -> None:
    log_weights, tokens = random_answer(seed)

    body = f"{ANSWER} {TAKE} return [answer.course.map(step => step.weights), answer.belief.information];"
    weights, information = visitor.call("answer", body, log_weights, rule, as_sent(tokens))

    for number in range(len(tokens) + 1):
        summary = summarise(tokens[:number], log_weights, rule)
        assert weights[number] == pytest.approx(summary.member_weights, abs=1e-9)
        assert information[number] == pytest.approx(summary.mutual_information, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rule", ["prefix_posterior", "fixed"])
def test_a_policy_ends_an_answer_where_the_server_ends_it(
    metric: str, rule: WeightsRule, visitor: Visitor
) -> None:
    """At thresholds between the values that came, and on those that are met to the last digit."""
    for seed in range(10):
        log_weights, tokens = random_answer(seed)
        values = sorted(
            asdict(summarise(tokens[: n + 1], log_weights, rule))[metric] for n in range(len(tokens))
        )
        between = [(low + high) / 2 for low, high in pairwise(values) if high - low > 1e-9]
        exact = [] if metric == "mutual_information" else values
        policies = [
            Policy(action, metric, threshold, min_tokens)
            for threshold in (0.0, *between, *exact)
            for action in ("abstain", "route")
            for min_tokens in (1, 5)
        ]

        asked = [
            {name: vars(policy)[name] for name in ("action", "metric", "threshold", "min_tokens")}
            for policy in policies
        ]
        judge = "const { judge } = await import(url.replace('answer', 'judge'));"
        body = f"{judge} {ANSWER} {TAKE} return a[3].map((policy) => judge(policy, answer));"
        found = visitor.call("answer", body, log_weights, rule, as_sent(tokens), asked)

        for policy, said in zip(policies, found, strict=True):
            running = RunningDecision(
                policy, ChoiceTrace(tuple(log_weights), rule, tokens=tokens), streamed=True
            )
            running.catch_up()
            assert (said["action"], said["at"]) == (running.decision.action, running.decision.decided_at)


STREAM = """: a comment\r\ndata: {"é": "🙂"}\r\n\r\nevent: other\ndata: two\ndata:lines\n
data: last\r\rdata: [DONE]\n
"""


def test_a_stream_is_read_however_it_is_cut(visitor: Visitor) -> None:
    """At every byte, and byte by byte: in characters, between the two signs of a line's end, in an event."""
    data = STREAM.encode()
    cuts = [[data[:at], data[at:]] for at in range(len(data) + 1)]
    cuts.append([data[at : at + 1] for at in range(len(data))])

    body = """
      const read = async (parts) => {
        const start = (body) => {
          parts.forEach((part) => body.enqueue(new Uint8Array(part)));
          body.close();
        };
        const found = [];
        for await (const data of m.eventsOf(new ReadableStream({ start }))) found.push(data);
        return found;
      };
      return Promise.all(a[0].map(read));
    """
    found = visitor.call("events", body, [[list(part) for part in parts] for parts in cuts])

    assert found == [['{"é": "🙂"}', "two\nlines", "last", "[DONE]"]] * len(cuts)


def test_a_character_of_several_tokens_is_shown_once_it_is_whole(visitor: Visitor) -> None:
    parts = [b"a", "🙂".encode()[:3], "🙂".encode()[3:], b"<end>"]
    tokens = [{"bytes": list(part), "member_log_probs": [-1, -1]} for part in parts]

    body = f"{ANSWER} {TAKE} answer.text = 'a🙂'; return [answer.spelled, answer.textEndsAt];"
    spelled, end = visitor.call("answer", body, [-0.7, -0.7], "prefix_posterior", tokens)

    assert spelled == ["a", "", "🙂", "<end>"]
    assert end == 3  # as JavaScript counts, in UTF-16


@pytest.mark.parametrize(
    ("number", "written"),
    [(0.61234, "0.612"), (-2.5, "−2.500"), (0, "0.000"), (0.00003, "3.0e−5"), (-9999.0, "−∞"), (None, "–")],
)
def test_nats_are_written_in_one_way(number: float | None, written: str, visitor: Visitor) -> None:
    assert visitor.call("numbers", "return m.nats(a[0]);", number) == written


@pytest.mark.parametrize(
    ("share", "written"),
    [(0, "0.0 %"), (1, "100.0 %"), (0.5, "50.0 %"), (1e-9, "< 0.1 %"), (1 - 1e-9, "> 99.9 %")],
)
def test_a_share_that_is_not_quite_all_or_nothing_says_so(
    share: float, written: str, visitor: Visitor
) -> None:
    assert visitor.call("numbers", "return m.percent(a[0]);", share).replace("\u00a0", " ") == written


def test_python_of_a_request_is_python(visitor: Visitor) -> None:
    body = {
        "model": "m",
        "messages": [{"content": '\u2028 " \\ \n é 🙂', "x": [True, False, None, 1.5, {}, []]}],
        "n": 1,
    }

    code = visitor.call("snippets", "return m.python('chat.completions', a[0]);", body)

    given: dict[str, Any] = {}
    call = code.partition("answer = client.chat.completions.create(")[2].partition("\n)\n")[0]
    exec(f"given = dict({call})", {}, given)
    asked = given["given"]
    assert {**asked.pop("extra_body"), **asked} == json.loads(json.dumps(body))
