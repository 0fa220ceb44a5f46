"""`--upstream`: the same as in the file, field by field, in one flag for each upstream."""

from typing import Any

import pytest

from softspec.errors import ConfigError
from softspec.server.ops.upstream_flags import with_upstreams
from softspec.server.upstream.settings import UpstreamSettings, read_upstreams


@pytest.mark.parametrize(
    ("flag", "fields"),
    [
        ("big=https://example.com/v1", {"url": "https://example.com/v1"}),
        ("big=http://h/v1,model=meta/Llama-3:8b", {"url": "http://h/v1", "model": "meta/Llama-3:8b"}),
        ("big=http://h/v1,model=4", {"url": "http://h/v1", "model": "4"}),
        ("big=http://h/a,b/v1,model=x,y", {"url": "http://h/a,b/v1", "model": "x,y"}),
        ("big=timeout_s=2.5,max_retries=0", {"timeout_s": 2.5, "max_retries": 0}),
        ("big=model=m,url=http://h/v1", {"model": "m", "url": "http://h/v1"}),
        (
            "big=http://h,drop_fields=[seed,logit_bias]",
            {"url": "http://h", "drop_fields": ["seed", "logit_bias"]},
        ),
        ("big=http://h,api_key_env=KEY", {"url": "http://h", "api_key_env": "KEY"}),
    ],
)
def test_flag_says_what_the_file_would(flag: str, fields: dict[str, Any]) -> None:
    assert with_upstreams({}, [flag]) == {"big": fields}


def test_every_field_of_an_upstream_can_be_given_in_a_flag() -> None:
    every = {
        "url": "http://h/v1",
        "model": "m",
        "api_key_env": "KEY",
        "connect_timeout_s": "1.5",
        "first_byte_timeout_s": "2",
        "timeout_s": "3",
        "max_retries": "1",
        "circuit_failures": "4",
        "circuit_open_s": "5",
        "drop_fields": "[seed]",
    }
    flag = "big=" + ",".join(f"{key}={value}" for key, value in every.items())

    found = read_upstreams(with_upstreams({}, [flag]))["big"]

    assert found.model_fields_set == set(every)
    assert set(UpstreamSettings.model_fields) - set(every) == {"api_key_file"}


def test_flag_wins_over_the_file_field_by_field() -> None:
    of_file: dict[str, Any] = {
        "big": {"url": "http://h/v1", "model": "m", "timeout_s": 9},
        "small": {"url": "http://s/v1"},
    }

    found = with_upstreams(of_file, ["big=model=other", "third=http://t"])

    assert found == {
        "big": {"url": "http://h/v1", "model": "other", "timeout_s": 9},
        "small": {"url": "http://s/v1"},
        "third": {"url": "http://t"},
    }
    assert of_file["big"]["model"] == "m"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["https://example.com/v1"], "--upstream has no '=': expected NAME=URL,model=MODEL"),
        (["=http://h"], "an upstream is named ''"),
        (["a b=http://h"], "an upstream is named 'a b'"),
        (
            ["big=http://h", "big=model=m"],
            "--upstream names 'big' twice: expected all of its fields in one flag",
        ),
        (["big=http://h,retries=2"], "--upstream big: retries: unknown key; did you mean 'max_retries'?"),
        (["big=http://h,model=a,model=b"], "--upstream big: model is there twice; keep one"),
        (
            ["big=http://h,timeout_s=[1"],
            "--upstream big: timeout_s cannot be read: expected a number or a list",
        ),
    ],
)
def test_flag_that_cannot_be_read_is_refused(flags: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        with_upstreams({}, flags)

    assert complaint in str(error.value)


@pytest.mark.parametrize("flag", ["big=http://u:sk-secret@h", "big=http://h,api_key=sk-secret", "sk-secret"])
def test_no_message_repeats_what_may_be_a_key(flag: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_upstreams(with_upstreams({}, [flag]))

    assert "sk-secret" not in str(error.value)
