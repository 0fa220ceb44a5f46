"""The request log: one line of JSON for every request, and nothing of what it says unless that is wanted."""

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from fastapi import Response
from fastapi.testclient import TestClient

from softspec.engine.meter import Meter
from softspec.server.observe.account import Account
from softspec.server.observe.content import LONGEST, Overhear
from softspec.server.observe.log import LOGGER, line_of, log_requests
from softspec.server.policy.policy import Policy
from tests.support.documents import blocks
from tests.support.fake_engine import AGREED, ENSEMBLE, PROMPT_TOKENS, TORN, FakeEngine, client_of, make_app

HELLO: Any = [{"role": "user", "content": "hello"}]
FIELDS = [
    "ts",
    "level",
    "request_id",
    "trace_id",
    "key",
    "model",
    "prompt_tokens",
    "completion_tokens",
    "ttft_ms",
    "tpot_ms",
    "mutual_information",
    "decision",
    "status",
    "method",
    "route",
    "duration_ms",
]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = LOGGER.handlers
    yield
    LOGGER.handlers = before


class Logged:
    """A server whose request log is read."""

    def __init__(self, *scripts: Any, policy: Policy | None = None, content: bool = False) -> None:
        self.out = io.StringIO()
        layers = [Overhear] if content else []
        self.engine = FakeEngine(scripts or [AGREED])
        self.app = make_app(self.engine, policy, observers=[log_requests(self.out)], layers=layers)
        self.openai = client_of(self.app)
        self.http = TestClient(self.app, raise_server_exceptions=False)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.getvalue().splitlines()]

    @property
    def line(self) -> dict[str, Any]:
        (line,) = self.lines
        return line


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_request_is_one_line_with_these_fields(stream: bool) -> None:
    logged = Logged(TORN, policy=Policy("abstain", "max_epistemic", 0.5))

    answer: Any = logged.openai.chat.completions.create(model=ENSEMBLE, messages=HELLO, stream=stream)
    _ = list(answer)

    line = logged.line
    assert list(line) == FIELDS
    assert (line["level"], line["status"], line["decision"]) == ("info", 200, "abstain")
    assert (line["model"], line["prompt_tokens"]) == (ENSEMBLE, PROMPT_TOKENS)
    assert (line["method"], line["route"]) == ("POST", "/v1/chat/completions")
    assert line["mutual_information"] > 0
    assert 0 <= line["ttft_ms"] <= line["duration_ms"]


def test_document_shows_such_a_line() -> None:
    shown = [json.loads(block.text) for block in blocks() if block.text.startswith('{"ts"')]

    assert [list(line) for line in shown] == [FIELDS]


def test_time_is_that_of_the_end_in_utc_to_the_millisecond() -> None:
    logged = Logged()

    logged.openai.chat.completions.create(model=ENSEMBLE, messages=HELLO)

    text = logged.line["ts"]
    assert len(text) == len("2026-01-01T00:00:00.000Z")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(text)) < timedelta(seconds=10)


def test_times_are_those_of_the_tokens() -> None:
    """Ten tokens after the first, over half a second: 50 ms each."""
    account = Account("id", "POST", "/v1/completions", began_at=100.0, ended_at=101.0)
    account.meter = Meter(prompt_tokens=3, completion_tokens=11, first_token_at=100.25, last_token_at=100.75)

    line = json.loads(line_of(account))

    assert (line["ttft_ms"], line["tpot_ms"], line["duration_ms"]) == (250.0, 50.0, 1000.0)


def test_one_token_has_no_time_per_further_token() -> None:
    account = Account("id", "POST", "/v1/completions", began_at=100.0, ended_at=101.0)
    account.meter = Meter(prompt_tokens=3, completion_tokens=1, first_token_at=100.2, last_token_at=100.2)

    assert json.loads(line_of(account))["tpot_ms"] is None


@pytest.mark.parametrize(("status", "level"), [(404, "warning"), (500, "error")])
def test_level_says_whose_fault_it_was(status: int, level: str) -> None:
    logged = Logged()
    logged.app.add_api_route("/v1/odd", lambda: Response(status_code=status), methods=["POST"])

    logged.http.post("/v1/odd")

    assert (logged.line["level"], logged.line["status"]) == (level, status)


def test_stream_that_fails_in_the_middle_is_an_error() -> None:
    """Its status was sent before; the engine measured nothing, so no answer may go out."""
    logged = Logged()
    logged.engine.measures = False

    with pytest.raises(openai.APIError):
        list(logged.openai.chat.completions.create(model=ENSEMBLE, messages=HELLO, stream=True))

    assert (logged.line["status"], logged.line["level"]) == (200, "error")


def test_callers_id_and_trace_are_in_the_line() -> None:
    logged = Logged()

    headers = {"x-request-id": "mine", "traceparent": CALLER}
    logged.openai.chat.completions.create(model=ENSEMBLE, messages=HELLO, extra_headers=headers)

    assert (logged.line["request_id"], logged.line["trace_id"]) == ("mine", TRACE)


@pytest.mark.parametrize("text", ["", "garbage", f"00-{'0' * 32}-00f067aa0ba902b7-01", "ff" + CALLER[2:]])
def test_trace_that_cannot_be_read_is_none(text: str) -> None:
    logged = Logged()

    logged.openai.chat.completions.create(model=ENSEMBLE, messages=HELLO, extra_headers={"traceparent": text})

    assert logged.line["trace_id"] is None


def test_model_that_is_not_served_is_not_repeated() -> None:
    logged = Logged()

    with pytest.raises(openai.NotFoundError):
        logged.openai.chat.completions.create(model="a secret", messages=HELLO)

    assert (logged.line["model"], logged.line["status"]) == (None, 404)
    assert "secret" not in logged.out.getvalue()


@pytest.mark.parametrize("path", ["/health", "/metrics", "/page.js", "/ready"])
def test_probes_and_pages_are_no_news(path: str) -> None:
    logged = Logged()
    logged.app.add_api_route(path, lambda: Response(), methods=["GET"])

    logged.http.get(path)

    assert logged.lines == []


def test_server_that_is_not_ready_yet_is_no_news() -> None:
    logged = Logged()
    logged.app.add_api_route("/ready", lambda: Response(status_code=503), methods=["GET"])

    logged.http.get("/ready")

    assert logged.lines == []


def test_probe_that_fails_is_news() -> None:
    logged = Logged()
    logged.app.add_api_route("/health", lambda: Response(status_code=503), methods=["GET"])

    logged.http.get("/health")

    assert (logged.line["route"], logged.line["level"]) == ("/health", "error")


class Full(io.StringIO):
    """A disk without room."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


def test_line_that_cannot_be_written_breaks_no_request(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(make_app(FakeEngine([AGREED]), observers=[log_requests(Full())]))

    for _ in range(3):
        assert client.chat.completions.create(model=ENSEMBLE, messages=HELLO).choices

    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told.startswith("requests are no longer logged")
    assert "No space left on device" in told


def test_content_is_in_no_line_unless_it_is_wanted() -> None:
    logged = Logged()

    logged.openai.chat.completions.create(model=ENSEMBLE, messages=HELLO)

    assert "hello" not in logged.out.getvalue()
    assert "w1" not in logged.out.getvalue()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_content_that_is_wanted_is_the_messages_and_the_answer(stream: bool) -> None:
    logged = Logged(content=True)

    answer: Any = logged.openai.chat.completions.create(model=ENSEMBLE, messages=HELLO, stream=stream)
    _ = list(answer)

    assert list(logged.line) == [*FIELDS, "messages", "answer"]
    assert logged.line["messages"] == HELLO
    assert logged.line["answer"] == " w0 w1 w2 w3"


def test_content_of_a_text_completion_is_its_prompt_and_of_several_choices_all() -> None:
    logged = Logged(AGREED, AGREED[:1], content=True)

    logged.openai.completions.create(model=ENSEMBLE, prompt="Once", n=2)

    assert (logged.line["prompt"], logged.line["answer"]) == ("Once", [" w0 w1 w2 w3", " w0"])


def test_long_content_is_cut_with_a_mark() -> None:
    logged = Logged(content=True)
    long: Any = [{"role": "user", "content": "ö" * LONGEST}]

    logged.openai.chat.completions.create(model=ENSEMBLE, messages=long)

    told = logged.line["messages"]
    assert isinstance(told, str)
    assert told.endswith("… (cut)")
    assert len(told.encode()) <= LONGEST + 16
    assert told.startswith('[{"role": "user", "content": "öö')


def test_content_that_is_no_json_is_told_as_it_came() -> None:
    logged = Logged(content=True)

    logged.http.post(
        "/v1/chat/completions", content=b"{not json", headers={"content-type": "application/json"}
    )

    assert (logged.line["prompt"], logged.line["status"]) == ("{not json", 422)
