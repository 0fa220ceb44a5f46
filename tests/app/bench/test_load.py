"""`softspec bench load`: what it asks, what it counts, and all of it against servers around a scripted engine."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from softspec.app.bench.load.conversations import conversations
from softspec.app.bench.load.settings import LoadSettings
from softspec.app.bench.load.tally import Tally
from softspec.app.cli.main import main
from softspec.errors import ConfigError, DataError
from softspec.server.policy.policy import Policy
from tests.support.fake_engine import ENSEMBLE, TORN, FakeEngine, make_app

QUESTION = {"role": "user", "content": "May I?"}
ANSWER = {"role": "assistant", "content": "No."}


# What is asked


def test_made_up_prompts_have_their_words_and_are_all_different() -> None:
    asked = conversations(LoadSettings(requests=20, prompt_words=30))

    texts = [messages[0]["content"] for messages in asked]
    assert {len(text.split()) for text in texts} == {30}
    assert len(set(texts)) == 20


def test_a_seed_makes_the_same_prompts_up() -> None:
    first, again, other = (conversations(LoadSettings(requests=3, seed=seed)) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_rows_are_asked_in_turn_without_the_answers_that_training_has(tmp_path: Path) -> None:
    rows = [{"prompt": "Is it?"}, {"messages": [QUESTION, ANSWER]}, {"prompt": [QUESTION]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    asked = conversations(LoadSettings(requests=4, prompts=path))

    is_it = [{"role": "user", "content": "Is it?"}]
    assert asked == [is_it, [QUESTION], [QUESTION], is_it]


@pytest.mark.parametrize("line", ["", "{", '{"text": "x"}', '{"messages": []}', "[1]", '{"prompt": ""}'])
def test_a_file_without_questions_is_refused_with_its_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")

    with pytest.raises(DataError, match=r"rows\.jsonl"):
        conversations(LoadSettings(prompts=path))


def test_a_rate_and_a_duration_are_so_many_requests() -> None:
    assert LoadSettings(rate=2.5, duration=10).count == 25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"duration": 3}, "--duration is for --rate"),
        ({"rate": 1, "duration": 3, "requests": 4}, "give one of them"),
        ({"concurrency": 0}, "--concurrency is 0"),
        ({"rate": float("inf")}, "--rate is inf"),
    ],
)
def test_a_load_that_means_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoadSettings(**settings)


# What is counted


def stream(*events: dict[str, Any]) -> bytes:
    return (
        b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    )


def test_decisions_are_those_of_last_chunks() -> None:
    tally = Tally()
    piece = {"choices": [{"delta": {"content": "Yes"}, "uncertainty": {"tokens": []}}]}
    last = {"choices": [{"delta": {}, "uncertainty": {"decision": "abstain", "mutual_information": 0.5}}]}

    assert tally.hear(200, stream(piece, last)) is None
    assert tally.hear(200, stream(piece)) is None

    assert (tally.decisions, tally.mutual_information) == ({"abstain": 1}, [0.5])
    assert tally.mean_mutual_information == 0.5


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"error": {"message": "the engine died", "code": 500}}, "the engine died"),
        ({"choices": [{"finish_reason": "error", "delta": {}}]}, "the answer ended with an error"),
    ],
    ids=["event", "finish_reason"],
)
def test_a_stream_that_ends_in_an_error_is_no_answer(event: dict[str, Any], reason: str) -> None:
    assert Tally().hear(200, stream({"choices": [{"delta": {"content": "Yes"}}]}, event)) == reason


def test_what_was_not_answered_is_counted_too() -> None:
    tally = Tally()

    for status in (None, 429, 429, 200):
        tally.hear(status, b"")

    assert tally.statuses == {"no answer": 1, "429": 2, "200": 1}


# Against a server


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The URL of an app in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))  # who connects before it is served waits
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def loaded(url: str, tmp_path: Path, *flags: str) -> dict[str, Any]:
    output = tmp_path / "load.json"
    assert main(["bench", "load", url, "--prompt-words", "5", "--json", str(output), *flags]) == 0
    return dict(json.loads(output.read_text()))


@pytest.mark.vllm
def test_a_load_is_timed_and_its_decisions_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TORN crosses the threshold at its third token, so every answer is withheld."""
    policy = Policy(action="abstain", metric="max_epistemic", threshold=0.3)
    app = make_app(FakeEngine([TORN]), policy)

    with served(app) as url:
        found = loaded(f"{url}/v1", tmp_path, "--model", ENSEMBLE, "--requests", "6", "--concurrency", "2")

    printed = capsys.readouterr().out
    assert (found["answered"], found["failed"], found["statuses"]) == (6, 0, {"200": 6})
    assert found["decisions"] == {"abstain": 6}
    assert found["mutual_information_nats"] > 0
    assert 0 < found["times"]["ttft_ms"]["p50"] <= found["times"]["e2el_ms"]["p50"]
    assert "6 requests, 6 answered, 0 failed: 6 of 200" in printed
    assert "decisions: abstain 6" in printed


@pytest.mark.vllm
def test_who_is_turned_away_is_counted_by_status(tmp_path: Path) -> None:
    inner, seen = make_app(FakeEngine([TORN])), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        """429, 503, an answer, and so on."""
        if scope["type"] == "http" and scope["path"] == "/v1/chat/completions":
            seen.append(scope)
            if status := (429, 503, 0)[len(seen) % 3]:
                return await JSONResponse({}, status)(scope, receive, send)
        await inner(scope, receive, send)

    with served(app) as url:
        found = loaded(url, tmp_path, "--model", ENSEMBLE, "--requests", "9", "--concurrency", "1")

    assert found["statuses"] == {"200": 3, "429": 3, "503": 3}
    assert (found["answered"], found["failed"]) == (3, 6)
    assert found["first_error"] in ("Too Many Requests", "Service Unavailable")


class Waiting:
    """Answers nobody before so many have asked; knows how many it had at once, and what they sent."""

    def __init__(self, until: int) -> None:
        self.until, self.at_once, self.most = until, 0, 0
        self.enough = asyncio.Event()
        self.headers: list[Any] = []
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.answer)
        self.app.get("/v1/models")(self.models)

    async def models(self, request: Request) -> Any:
        self.headers.append(request.headers.get("authorization"))
        return {"data": [{"id": "jurists"}, {"id": "base"}]}

    async def answer(self, request: Request) -> StreamingResponse:
        self.headers.append(request.headers.get("authorization"))
        assert (await request.json())["model"] == "jurists"
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        if self.most == self.until:
            self.enough.set()
        await self.enough.wait()
        self.at_once -= 1
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        body = stream({"choices": [{"delta": {"content": "Yes"}}]}, {"choices": [], "usage": usage})
        return StreamingResponse(iter([body]), media_type="text/event-stream")


@pytest.mark.vllm
def test_an_open_loop_goes_on_asking_while_nobody_is_answered(tmp_path: Path) -> None:
    server = Waiting(until=8)

    with served(server.app) as url:
        found = loaded(url, tmp_path, "--rate", "200", "--requests", "8")

    assert (found["answered"], server.most) == (8, 8)


@pytest.mark.vllm
def test_a_closed_loop_has_so_many_requests_under_way_and_no_more(tmp_path: Path) -> None:
    server = Waiting(until=3)

    with served(server.app) as url:
        found = loaded(url, tmp_path, "--concurrency", "3", "--requests", "12")

    assert (found["answered"], server.most) == (12, 3)


@pytest.mark.vllm
def test_the_first_listed_model_is_asked_with_the_key_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    server = Waiting(until=1)

    with served(server.app) as url:
        found = loaded(url, tmp_path, "--concurrency", "1", "--requests", "2")

    assert found["model"] == "jurists"
    assert set(server.headers) == {"Bearer sk-mine"}
    assert "sk-mine" not in json.dumps(found)


@pytest.mark.vllm
def test_a_server_that_answers_nobody_is_an_error_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    app = FastAPI()

    with served(app) as url:
        code = main(["bench", "load", url, "--model", "x", "--requests", "2"])

    assert code == 1
    assert "none of 2 requests was answered: Not Found" in capsys.readouterr().err


def test_no_server_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["bench", "load", "http://127.0.0.1:9"])

    assert code == 2
    assert "'http://127.0.0.1:9' has no list of models" in capsys.readouterr().err
