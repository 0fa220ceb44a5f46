"""No log has a word of a prompt or an answer: a canary in every place of a request never comes out."""

import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softspec.engine.start.quiet import Unexpected
from softspec.errors import ConfigError
from softspec.server.observe.account import Account, current_account
from softspec.server.observe.discretion import keep_content_out
from softspec.server.observe.settings import LogSettings
from tests.support.scripted_vllm import NAME, Server, serving
from tests.support.tiny import random_adapters, tiny_llama

CANARY = "canary-7d1f"
SAID: Any = [{"role": "user", "content": f"tell nobody of {CANARY}"}]
SCHEMA = {"type": "object", "properties": {CANARY: {"type": "string", "pattern": "(" + CANARY}}}
CHAT, TEXT, MESSAGES, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)
ASKED: dict[str, tuple[str, Any]] = {
    "answered": (CHAT, {"messages": SAID, "stop": [CANARY]}),
    "streamed": (CHAT, {"messages": SAID, "stop": [CANARY], "stream": True}),
    "text": (TEXT, {"prompt": CANARY}),
    "answered in Anthropic's words": (MESSAGES, {"messages": SAID, "max_tokens": 2, "system": CANARY}),
    "answered in Responses": (RESPONSES, {"input": CANARY, "instructions": CANARY}),
    "by a member": (CHAT, {"messages": SAID, "model": f"{NAME}/member-0"}),
    "by the base": (CHAT, {"messages": SAID, "model": "tiny-base", CANARY: CANARY}),
    "batch": ("/v1/chat/completions/batch", {"messages": [SAID]}),
    "decided": (
        "/v1/decisions",
        {"input": CANARY, "questions": [{"type": "predicate", "instructions": CANARY}]},
    ),
    "scored": ("/v1/uncertainty", {"messages": SAID, "answers": [CANARY]}),
    "tokenized": ("/tokenize", {"prompt": CANARY}),
    "unknown field": (CHAT, {"messages": SAID, CANARY: CANARY}),
    "field of a wrong kind": (CHAT, {"messages": SAID, "temperature": CANARY}),
    "message of a wrong kind": (CHAT, {"messages": CANARY}),
    "Anthropic's message of a wrong kind": (MESSAGES, {"messages": CANARY, "max_tokens": 2}),
    "content of a wrong kind": (CHAT, {"messages": [{"role": "user", "content": [{"type": CANARY}]}]}),
    "schema that does not compile": (
        CHAT,
        {
            "messages": SAID,
            "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}},
        },
    ),
    "template's fields": (CHAT, {"messages": SAID, "chat_template_kwargs": {"tools": CANARY}}),
    "template that refuses": (
        CHAT,
        {"messages": SAID, "chat_template": "{{ raise_exception(messages[0].content) }}"},
    ),
    "model": (CHAT, {"messages": SAID, "model": CANARY}),
    "path": (f"/v1/{CANARY}", {}),
    "no JSON": (CHAT, CANARY.encode()),
    "picture": (
        CHAT,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CANARY}"}}
                    ],
                }
            ]
        },
    ),
}


@pytest.fixture(autouse=True)
def talkative() -> Iterator[None]:
    """Another server of this process may have been discreet."""
    before = logging.getLogRecordFactory()

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = logging.LogRecord(*args, **kwargs)
        made.vllm_process_name = "server"  # as vLLM's own factory, without which its format fails
        return made

    logging.setLogRecordFactory(record)
    yield
    logging.setLogRecordFactory(before)


@contextlib.contextmanager
def listening() -> Iterator[io.StringIO]:
    """Everything that any logger says from now on, at every level, but for the client's."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.addFilter(lambda record: not record.name.startswith("httpx2"))
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    apart = [
        logger
        for logger in logging.root.manager.loggerDict.values()
        if isinstance(logger, logging.Logger) and not logger.propagate
    ]
    heard = [logging.root, *apart]  # what propagates is heard at the root
    levels = {logger: logger.level for logger in (*heard, logging.getLogger("vllm"))}
    for logger in heard:
        logger.addHandler(handler)
    for logger in levels:
        logger.setLevel(logging.DEBUG)
    yield out
    for logger in heard:
        logger.removeHandler(handler)
    for logger, level in levels.items():
        logger.setLevel(level)


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    with listening() as out:
        yield out


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return random_adapters(tiny_llama(folder / "tiny-base"), folder / NAME, num_members=2)


def ask(server: Server, path: str, body: Any) -> int | None:
    """The status; None if the app raised, as it does where a server would then log what it raised."""
    content = {"content": body} if isinstance(body, bytes) else {"json": {"model": NAME, **body}}
    headers = {"content-type": "application/json"}
    with contextlib.suppress(Exception):
        return server.run(server.http.post(path, headers=headers, **content)).status_code
    return None


@pytest.mark.vllm
def test_canary_is_in_no_log_whatever_becomes_of_the_request(
    ensemble: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At vLLM's most talkative level, with the stack of every error."""
    flags = ("--log-error-stack", "--trust-request-chat-template")
    with serving(ensemble, *flags) as server, listening() as logged:
        statuses = {name: ask(server, path, body) for name, (path, body) in ASKED.items()}

        async def failing(prompt: Any, *_: Any, **__: Any) -> Any:
            raise RuntimeError(f"cannot compute {CANARY}")
            yield

        server.engine.generate = failing
        failures = {name: ask(server, *ASKED[name]) for name in ("answered", "streamed", "text", "batch")}
        failures[MESSAGES] = ask(server, MESSAGES, {"messages": SAID, "max_tokens": 2, "stream": True})

    told, output = logged.getvalue(), "".join(capfd.readouterr())
    assert CANARY not in told
    assert CANARY not in output
    assert {200, 400, 404} <= set(statuses.values()), statuses
    assert "Chat template rejected the request: …" in told
    assert set(failures.values()) & {None, 500}
    assert "Error in chat completion stream generator" in told
    assert told.count("RuntimeError: …") == 2


@pytest.mark.vllm
def test_canary_is_there_where_content_is_wanted(ensemble: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Or the test above would show nothing."""
    with serving(ensemble, log=LogSettings(content=True)) as server, listening() as logged:
        for stream in (False, True):
            ask(server, CHAT, {"messages": SAID, "stream": stream})
            ask(server, MESSAGES, {"messages": SAID, "max_tokens": 2, "stream": stream})
            ask(server, RESPONSES, {"input": CANARY, "stream": stream})

    told = logged.getvalue().splitlines()
    assert [line for line in told if "Received messages request" in line and CANARY in line]
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["route"] for line in lines] == [CHAT, MESSAGES, RESPONSES] * 2
    assert [line.get("messages") for line in lines] == [SAID, SAID, None] * 2
    assert [line.get("prompt") for line in lines] == [None, None, CANARY] * 2
    assert [line["answer"] for line in lines] == [" yes it is", " yes it", " yes it is"] * 2


@pytest.mark.vllm
def test_vllm_started_by_hand_may_not_log_content_either(ensemble: Path) -> None:
    with (
        pytest.raises(ConfigError, match="--enable-log-requests logs prompts and answers"),
        serving(ensemble, "--enable-log-requests"),
    ):
        pass


def test_error_of_a_library_keeps_its_kind_so_that_a_quiet_server_knows_the_end_of_its_engine() -> None:
    class EngineDeadError(Exception):
        """As vLLM's."""

    keep_content_out()
    current_account.set(Account("id", "POST", "/v1/completions"))
    make = logging.getLogRecordFactory()
    try:
        raise EngineDeadError(CANARY)
    except EngineDeadError:
        record = make("vllm", logging.ERROR, __file__, 1, "Error in stream", (), sys.exc_info())
    current_account.set(None)

    assert Unexpected().filter(record) is False
    assert CANARY not in logging.Formatter().format(record)


def test_what_a_library_says_in_a_request_keeps_its_own_words_and_numbers(logged: io.StringIO) -> None:
    keep_content_out()
    current_account.set(Account("id", "POST", "/v1/completions"))

    logging.getLogger("vllm.parser").warning("cannot read %s at %d of %.1f", CANARY, 3, 0.5)
    logging.getLogger("vllm.parser").warning(ValueError(CANARY))
    logging.getLogger("softspec.server").warning("upstream '%s' failed", "big")
    current_account.set(None)

    assert logged.getvalue().splitlines() == [
        "vllm.parser WARNING cannot read … at 3 of 0.5",
        "vllm.parser WARNING …",
        "softspec.server WARNING upstream 'big' failed",
    ]


def test_outside_of_requests_everything_is_said(logged: io.StringIO) -> None:
    """A start that fails must say why; a request that is over is no reason to say less."""
    keep_content_out()
    current_account.set(Account("id", "POST", "/v1/completions", ended_at=1.0))

    logging.getLogger("vllm.start").error("no file %s", "weights.safetensors")
    current_account.set(None)

    assert "no file weights.safetensors" in logged.getvalue()


def test_error_that_a_request_leaves_to_the_server_is_told_by_its_kind_and_its_place(
    logged: io.StringIO,
) -> None:
    """uvicorn logs it once the request is over."""
    keep_content_out()

    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError(f"no {CANARY}") from error
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")

    told = logged.getvalue()
    assert CANARY not in told
    assert told.index("KeyError: …") < told.index("ValueError: …")
    assert "test_discretion.py" in told


def test_error_that_is_written_into_the_message_is_taken_out_of_it(logged: io.StringIO) -> None:
    keep_content_out()
    current_account.set(Account("id", "POST", "/v1/completions"))

    try:
        raise ValueError(CANARY)
    except ValueError as error:
        logging.getLogger("vllm.parser").exception(f"Error in streaming: {error}")
    current_account.set(None)

    assert "Error in streaming: …" in logged.getvalue()
    assert CANARY not in logged.getvalue()
