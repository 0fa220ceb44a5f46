"""The settings of an upstream are checked before anything starts, and no complaint repeats a secret."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from softspec.errors import ConfigError
from softspec.server.upstream.request import upstream_body
from softspec.server.upstream.settings import UpstreamSettings, normal_url, read_upstreams

GOOD = {"url": "https://example.com/v1", "model": "big-1"}


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("https://example.com", "https://example.com/v1"),
        ("https://example.com/", "https://example.com/v1"),
        ("https://example.com/v1", "https://example.com/v1"),
        ("https://example.com/v1/", "https://example.com/v1"),
        ("https://example.com/v1//", "https://example.com/v1"),
        ("https://example.com/openai/v3", "https://example.com/openai/v3"),
        ("HTTP://Example.COM:8001", "http://example.com:8001/v1"),
        ("http://10.0.0.7:8000/v1", "http://10.0.0.7:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        ("http://localhost:8000/a%20b/", "http://localhost:8000/a%20b"),
    ],
)
def test_an_address_may_be_written_with_and_without_its_end(given: str, whole: str) -> None:
    assert normal_url(given) == whole
    assert normal_url(whole) == whole


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("example.com/v1", "must begin with http"),
        ("localhost:8000", "must begin with http"),
        ("ftp://example.com", "must begin with http"),
        ("https://", "name a host"),
        ("http:///v1", "name a host"),
        ("", "must begin with http"),
        ("https://example.com/v1?key=secret", "query or a fragment"),
        ("https://example.com/v1#secret", "query or a fragment"),
        ("https://example.com/v1?", "query or a fragment"),
        ("https://user:secret@example.com/v1", "user or a password"),
        ("https://secret@example.com", "user or a password"),
        ("https://@example.com", "user or a password"),
        (" https://example.com/v1", "spaces"),
        ("https://example.com/v1\n", "spaces"),
        ("https://example.com:99999/v1", "cannot be"),
        ("https://example.com:0/v1", "cannot be"),
        ("https://example.com:x/v1", "cannot be read"),
        ("https://exa mple.com/v1", "spaces"),
        ("https://exa%20mple.com/v1", "cannot be"),
        ("https://[::1/v1", "cannot be read"),
        ("https://user:secret/v1", "cannot be read"),
        ("https://example..com/v1", "cannot be read"),
        ("https://example.com/v1/chat/completions", "names a route"),
        ("https://example.com/v1/responses/", "names a route"),
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(given: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        read_upstreams({"big": {**GOOD, "url": given}})

    assert str(caught.value).startswith("upstream 'big': url")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"url": "https://example.com"}, "upstream 'big': model: missing"),
        ({**GOOD, "model": ""}, "upstream 'big': model: expected text that is not empty"),
        ({**GOOD, "model": None}, "upstream 'big': model: expected text"),
        ({**GOOD, "timeout": 3}, "upstream 'big': timeout: unknown key"),
        ({**GOOD, "timeout_s": "3"}, "upstream 'big': timeout_s: expected a number"),
        ({**GOOD, "timeout_s": 0}, "upstream 'big': timeout_s: expected a number greater than 0"),
        ({**GOOD, "timeout_s": float("inf")}, "upstream 'big': timeout_s: expected a finite number"),
        ({**GOOD, "timeout_s": float("nan")}, "upstream 'big': timeout_s: expected a finite number"),
        ({**GOOD, "timeout_s": 1e9}, "upstream 'big': timeout_s: expected a number of at most 86400"),
        ({**GOOD, "max_retries": -1}, "upstream 'big': max_retries: expected a number of at least 0"),
        ({**GOOD, "max_retries": True}, "upstream 'big': max_retries: expected a whole number"),
        ({**GOOD, "api_key": "sk-secret"}, "upstream 'big': api_key is given"),
        ({**GOOD, "api_key_env": ""}, "upstream 'big': api_key_env: expected text that is not empty"),
        ({**GOOD, "api_key_env": "A", "api_key_file": "B"}, "upstream 'big': api_key_env and api_key_file"),
        ({**GOOD, "drop_fields": "top_k"}, "upstream 'big': drop_fields: expected a list"),
        (
            {**GOOD, "drop_fields": ["messages"]},
            "upstream 'big': drop_fields: expected fields that may be left out",
        ),
        ({**GOOD, "key": "sk-secret"}, "upstream 'big': key: unknown key"),
        ("https://secret@example.com", "upstream 'big': expected an object"),
        (None, "upstream 'big': expected an object"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(fields: Any, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_upstreams({"big": fields})

    assert str(caught.value).startswith(told)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "größer", "a" * 65, "a\n", 'a"b'])
def test_names_fit_into_headers_and_labels(name: str) -> None:
    with pytest.raises(ConfigError, match="an upstream is named"):
        read_upstreams({name: GOOD})


def test_settings_survive_json() -> None:
    """As which they travel to the server's process."""
    settings = UpstreamSettings.model_validate(
        {**GOOD, "drop_fields": ["top_k"], "timeout_s": 3, "api_key_env": "BIG_KEY"}
    )

    assert UpstreamSettings.model_validate_json(settings.model_dump_json()) == settings


def test_a_complaint_of_pydantics_own_does_not_show_what_was_given() -> None:
    with pytest.raises(ValidationError) as caught:
        UpstreamSettings.model_validate({**GOOD, "url": "https://user:secret@example.com", "key": "secret"})

    assert "secret" not in str(caught.value)


# Bodies


def test_all_that_the_caller_asked_for_goes_on() -> None:
    asked = {
        "model": "mine",
        "messages": [],
        "top_k": 3,
        "chat_template_kwargs": {"a": 1},
        "tools": None,
        "stream": True,
    }

    assert upstream_body(asked, "big", stream=False) == {
        "model": "big",
        "messages": [],
        "top_k": 3,
        "chat_template_kwargs": {"a": 1},
        "tools": None,
        "stream": False,
    }


def test_what_is_between_the_caller_and_this_server_stays_here() -> None:
    ours = {
        "uncertainty": {"detail": "tokens"},
        "request_id": "r",
        "priority": 1,
        "cache_salt": "s",
        "vllm_xargs": {"a": 1},
    }

    assert upstream_body({"prompt": "x", **ours}, "big", stream=False) == {
        "prompt": "x",
        "model": "big",
        "stream": False,
    }


def test_fields_that_the_upstream_refuses_can_be_left_out() -> None:
    asked = {"prompt": "x", "top_k": 3, "min_p": 0.1, "seed": 1}

    assert upstream_body(asked, "big", False, ("top_k", "min_p")) == {
        "prompt": "x",
        "seed": 1,
        "model": "big",
        "stream": False,
    }


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (None, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
        ("nonsense", {"include_usage": True}),
    ],
)
def test_a_stream_is_asked_for_its_usage(options: Any, sent: Any) -> None:
    body = upstream_body({"prompt": "x", "stream_options": options}, "big", stream=True)

    assert body["stream_options"] == sent
    assert "stream_options" not in upstream_body({"stream_options": options}, "big", stream=False)


def test_the_callers_body_is_left_as_it_is() -> None:
    asked = {"messages": [{"role": "user", "content": "x"}], "stream_options": {"a": 1}, "uncertainty": {}}
    before = json.dumps(asked)

    upstream_body(asked, "big", stream=True)

    assert json.dumps(asked) == before
