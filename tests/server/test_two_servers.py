"""Two real servers: one of an ensemble, which routes, and one of its base, to which it routes.

What the base says when it is asked directly is what a routed answer must be.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from softspec.train.data.rows import Row, parse_row
from softspec.train.data.sources import read_rows
from tests.support.real_server import BASE, RealServer, softspec_server, stock_server
from tests.support.tiny import random_adapters, tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

HELLO: Any = [{"role": "user", "content": "hello"}]
ROUTE: Any = {"uncertainty": {"policy": {"action": "route", "metric": "max_epistemic", "threshold": 0.0}}}
GREEDY: Any = {"temperature": 0, "max_tokens": 12}
NAME = "law"


@dataclass
class Pair:
    """The server of the ensemble, the server of the base, and where the first records."""

    ensemble: RealServer
    base: RealServer
    record: Path
    clients: dict[str, openai.OpenAI]

    def asked(self, server: RealServer) -> openai.OpenAI:
        """OpenAI's client of one of them."""
        return self.clients[server.url]

    def running(self) -> float:
        """How many rows both engines work on."""
        pages = [httpx2.get(f"{server.url}/metrics").text for server in (self.ensemble, self.base)]
        lines = [line for page in pages for line in page.splitlines()]
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))

    def comes_to(self, state: Callable[[], bool]) -> bool:
        """Whether something becomes true within ten seconds."""
        deadline = time.monotonic() + 10
        while not state() and time.monotonic() < deadline:
            time.sleep(0.05)
        return state()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("two")
    base = tiny_llama(folder / "tiny-base")
    ensemble = random_adapters(base, folder / NAME, num_members=2, name=NAME)
    record = folder / "rows.jsonl"
    with stock_server(base, folder / "base.log") as upstream:
        upstream.wait_until_ready("/health")
        flags = ("--upstream", f"big={upstream.url}/v1,model={BASE}", "--record", str(record))
        with softspec_server(ensemble, folder / "ensemble.log", *flags) as server:
            server.wait_until_ready()
            with _client(server) as asking, _client(upstream) as asking_base:
                yield Pair(server, upstream, record, {server.url: asking, upstream.url: asking_base})


def _client(server: RealServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)


def total(usage: Any) -> dict[str, int]:
    return {name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def test_routed_chat_is_what_the_base_says(pair: Pair) -> None:
    expected = pair.asked(pair.base).chat.completions.create(model=BASE, messages=HELLO, **GREEDY)

    create = pair.asked(pair.ensemble).chat.completions.with_raw_response.create
    raw = create(model=NAME, messages=HELLO, extra_body=ROUTE, **GREEDY)

    found: Any = raw.parse()
    choice = found.choices[0]
    assert choice.message.content == expected.choices[0].message.content
    assert choice.finish_reason == expected.choices[0].finish_reason
    assert (choice.uncertainty["decision"], choice.uncertainty["upstream"]) == ("route", "big")
    assert found.model == BASE
    assert (raw.headers["x-softspec-decision"], raw.headers["x-softspec-upstream"]) == ("route", "big")
    parts = found.usage.softspec
    upstream = {name: parts["upstream"][name] for name in total(expected.usage)}
    assert upstream == total(expected.usage)
    assert parts["ensemble"]["completion_tokens"] == choice.uncertainty["decided_at"]
    assert total(found.usage) == {name: parts["ensemble"][name] + count for name, count in upstream.items()}


def test_streamed_chat_is_what_the_base_streams(pair: Pair) -> None:
    fields: Any = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}, **GREEDY}
    expected = list(pair.asked(pair.base).chat.completions.create(model=BASE, **fields))

    found: Any = list(
        pair.asked(pair.ensemble).chat.completions.create(model=NAME, extra_body=ROUTE, **fields)
    )

    *chunks, usage = found
    texts = [
        "".join(each.choices[0].delta.content or "" for each in sent) for sent in (chunks, expected[:-1])
    ]
    assert texts[0] == texts[1]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * (len(chunks) - 1)]
    assert chunks[-1].choices[0].uncertainty["decision"] == "route"
    assert len({chunk.id for chunk in found}) == 1
    assert {chunk.model for chunk in found} == {BASE}
    assert usage.usage.softspec["upstream"]["total_tokens"] == expected[-1].usage.total_tokens


def test_completions_are_routed_prompt_by_prompt(pair: Pair) -> None:
    prompts = ["Once", "Twice"]
    expected = pair.asked(pair.base).completions.create(model=BASE, prompt=prompts, **GREEDY)

    client = pair.asked(pair.ensemble)
    whole: Any = client.completions.create(model=NAME, prompt=prompts, extra_body=ROUTE, **GREEDY)
    texts = ["", ""]
    for chunk in client.completions.create(
        model=NAME, prompt=prompts, stream=True, extra_body=ROUTE, **GREEDY
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text

    assert [choice.text for choice in whole.choices] == [choice.text for choice in expected.choices] == texts
    assert whole.usage.softspec["upstream"]["completion_tokens"] == expected.usage.completion_tokens


def test_grammar_holds_at_the_upstream_and_its_answer_is_a_row_of_training(pair: Pair) -> None:
    schema = {"name": "verdict", "schema": {"type": "string", "enum": ["yes", "no"]}}
    create: Any = pair.asked(pair.ensemble).chat.completions.create

    found = create(
        model=NAME,
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": schema},
        extra_body=ROUTE,
        temperature=0,
    )

    said = found.choices[0].message.content
    assert json.loads(said) in ("yes", "no")
    assert pair.comes_to(lambda: bool(pair.record.read_text()))
    [(place, content)] = read_rows(str(pair.record))
    row = parse_row(content, Row, place)
    assert [(turn.role, turn.content) for turn in row.turns()] == [("user", "hello"), ("assistant", said)]
    assert content["uncertainty"]["upstream"] == "big"
    assert pair.record.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_client_that_leaves_ends_the_work_of_both(pair: Pair, stream: bool) -> None:
    body = {
        "model": NAME,
        "messages": HELLO,
        "stream": stream,
        "ignore_eos": True,
        "max_tokens": 900,
        **ROUTE,
    }

    url = f"{pair.ensemble.url}/v1/chat/completions"

    if stream:
        with httpx2.stream("POST", url, json=body, timeout=60) as response:
            lines = response.iter_lines()  # whose end would end the connection
            next(lines)
            assert pair.comes_to(lambda: pair.running() > 0)
    else:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(url, json=body, timeout=0.5)

    assert pair.comes_to(lambda: pair.running() == 0)


def test_upstream_that_is_gone_leaves_an_abstention(pair: Pair) -> None:
    """The last test of this file: it ends the server of the base."""
    pair.base.end()

    answer = pair.ensemble.chat(NAME, **ROUTE, max_tokens=4).json()

    choice = answer["choices"][0]
    assert choice["uncertainty"]["decision"] == "abstain"
    assert "upstream 'big' cannot be reached: connection refused" in choice["message"]["refusal"]
