"""The server's settings: who wins of file, variables and flags, and the environment that carries them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softspec.errors import ConfigError
from softspec.maths.answer import METRICS
from softspec.server.access.settings import AccessSettings
from softspec.server.observe.settings import LogSettings
from softspec.server.ops.server_config import RecordSettings
from softspec.server.ops.settings import Flags, Settings, read_settings, told_by_variables
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from softspec.server.rollout.settings import Shadow
from softspec.server.upstream.settings import KEPT_FIELDS, UpstreamSettings
from tests.support.key_files import key_file

NAMES = ("big", "small")
ACTIONS = ("answer", "abstain", "route")
RULE = {
    "metric": st.sampled_from(METRICS),
    "threshold": st.floats(0, 1e9, allow_nan=False),
    "min_tokens": st.integers(1, 10**6),
    "hold_tokens": st.none() | st.integers(0, 65_536),
}
POLICIES = (
    st.builds(Policy)
    | st.builds(Policy, st.just("abstain"), **RULE)
    | st.builds(
        Policy,
        st.just("route"),
        **RULE,
        upstream=st.sampled_from(NAMES),
        on_failure=st.sampled_from(("answer", "abstain", "error")),
    )
)
UPSTREAMS = st.builds(
    UpstreamSettings,
    url=st.just("https://example.com/v1"),
    model=st.text(min_size=1),
    api_key_env=st.none() | st.text(min_size=1),
    timeout_s=st.floats(0.001, 86_400),
    max_retries=st.integers(0, 10),
    drop_fields=st.lists(st.text().filter(lambda name: name not in KEPT_FIELDS)).map(tuple),
)
PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=())).map(Path)


@given(
    paths=st.lists(PATHS, min_size=1).map(tuple),
    policy=POLICIES,
    pinned=st.booleans(),
    overrides=st.booleans(),
    actions=st.none() | st.just(ACTIONS),
    upstreams=st.none() | st.just(NAMES),
    servers=st.tuples(UPSTREAMS, UPSTREAMS),
    record=st.none() | st.builds(RecordSettings, path=PATHS, keep=st.integers(0, 10_000)),
    risks=st.tuples(st.booleans(), st.booleans()),
    log=st.builds(LogSettings, requests=st.booleans(), content=st.booleans()),
    aliases=st.dictionaries(st.text(), st.dictionaries(st.text(), st.floats(0, 1e6))),
    shadows=st.dictionaries(st.text(), st.builds(Shadow, of=st.text(min_size=1), share=st.floats(0, 1))),
)
def test_settings_survive_the_environment(
    paths: tuple[Path, ...],
    policy: Policy,
    pinned: bool,
    overrides: bool,
    actions: Any,
    upstreams: Any,
    servers: tuple[UpstreamSettings, UpstreamSettings],
    record: RecordSettings | None,
    risks: tuple[bool, bool],
    log: LogSettings,
    aliases: dict[str, dict[str, float]],
    shadows: dict[str, Shadow],
) -> None:
    """Whatever directories are called, colons and bytes that are no text among it."""
    rules = PolicyRules(policy, NAMES, overrides, pinned and policy.action != "answer", actions, upstreams)
    settings = Settings(
        paths,
        rules,
        dict(zip(NAMES, servers, strict=True)),
        record,
        *risks,
        log=log,
        aliases=aliases,
        shadows=shadows,
    )

    variables = settings.to_environment()

    assert Settings.from_environment(variables) == settings
    assert Settings.from_environment(told_by_variables(settings, {})) == settings
    assert all("\0" not in value and value.isascii() for value in variables.values())


@pytest.mark.parametrize(
    ("policy", "variables"),
    [
        (Policy(), {}),
        (
            Policy("abstain", "epistemic", 0.3, 4),
            {
                "SOFTSPEC_POLICY_ACTION": "abstain",
                "SOFTSPEC_POLICY_METRIC": "epistemic",
                "SOFTSPEC_POLICY_THRESHOLD": "0.3",
                "SOFTSPEC_POLICY_MIN_TOKENS": "4",
            },
        ),
    ],
    ids=["default", "abstain"],
)
def test_settings_are_told_in_words_where_there_are_words(policy: Policy, variables: dict[str, str]) -> None:
    settings = Settings((Path("/a"), Path("/b")), PolicyRules(policy), base_unchecked=True)

    told = told_by_variables(settings, {})

    assert told == {"SOFTSPEC_ENSEMBLE": "/a:/b", **variables, "SOFTSPEC_BASE_UNCHECKED": "1"}


def test_file_of_the_server_is_named_and_what_words_cannot_say_is_carried(file: Path) -> None:
    settings = read_settings([Path("/a")], {}, Flags({"threshold": 0.2}), file)
    fixed = replace(settings, rules=replace(settings.rules, allow_override=False))

    told = told_by_variables(settings, {}, file)

    assert told["SOFTSPEC_SERVER_CONFIG"] == str(file)
    assert Settings.from_environment(told) == settings
    assert list(told_by_variables(fixed, {}, file)) == ["SOFTSPEC_SETTINGS"]


def test_variable_of_the_shell_that_would_say_something_else_is_overruled() -> None:
    variables = {"SOFTSPEC_POLICY_ACTION": "abstain", "SOFTSPEC_POLICY_THRESHOLD": "0.4"}
    settings = read_settings([Path("/a")], variables, Flags({"action": "answer"}), None)

    told = told_by_variables(settings, variables)

    assert Settings.from_environment({**variables, **told}) == settings


FILE = """
policy: {action: abstain, metric: epistemic, threshold: 0.3, min_tokens: 4}
upstreams: {big: {url: 'http://h/v1', model: m}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("variables", "flags", "expected"),
    [
        ({}, {}, Policy("abstain", "epistemic", 0.3, 4)),
        ({"THRESHOLD": "0.2"}, {}, Policy("abstain", "epistemic", 0.2, 4)),
        ({"THRESHOLD": "0.2"}, {"threshold": 0.1}, Policy("abstain", "epistemic", 0.1, 4)),
        ({"MIN_TOKENS": "2"}, {"threshold": 0.1}, Policy("abstain", "epistemic", 0.1, 2)),
        ({"ACTION": "answer"}, {}, Policy()),
        ({}, {"metric": "max_epistemic", "threshold": 0.5}, Policy("abstain", "max_epistemic", 0.5, 4)),
        (
            {"ACTION": "route", "HOLD_TOKENS": "3", "ON_FAILURE": "error"},
            {"upstream": "big"},
            Policy("route", "epistemic", 0.3, 4, 3, "big", "error"),
        ),
    ],
)
def test_flag_wins_over_the_variable_and_that_over_the_file(
    file: Path, variables: dict[str, str], flags: dict[str, Any], expected: Policy
) -> None:
    environment = {f"SOFTSPEC_POLICY_{name}": value for name, value in variables.items()}

    settings = read_settings([Path("my")], environment, Flags(flags), file)

    assert settings.rules.default == expected


def test_threshold_of_the_file_is_not_that_of_another_metric(file: Path) -> None:
    with pytest.raises(ConfigError, match="needs a threshold"):
        read_settings([Path("my")], {}, Flags({"metric": "max_epistemic"}), file)


def test_file_is_named_by_a_variable_where_vllm_is_started_by_hand(file: Path) -> None:
    environment = {"SOFTSPEC_ENSEMBLE": "/models/a", "SOFTSPEC_SERVER_CONFIG": str(file)}

    assert Settings.from_environment(environment).rules.default.metric == "epistemic"


def test_settings_that_were_carried_win_over_all_other_variables(file: Path) -> None:
    """`softspec serve` has read those already, and a flag may have won over them."""
    variables = {"SOFTSPEC_POLICY_ACTION": "abstain", "SOFTSPEC_POLICY_THRESHOLD": "0.4"}
    settings = read_settings([Path("/models/a")], variables, Flags({"action": "answer"}), None)

    assert Settings.from_environment({**variables, **settings.to_environment()}).rules.default == Policy()


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("{}", Flags(), (True, False)),
        ("{}", Flags(policy_fixed=True), (False, False)),
        ("allow_override: false", Flags(), (False, False)),
        ("policy: {action: abstain, threshold: 1}\npolicy_pinned: true", Flags(), (True, True)),
        ("{}", Flags({"action": "abstain", "threshold": 1}, policy_pinned=True), (True, True)),
    ],
)
def test_either_the_file_or_a_flag_ties_the_policy_down(
    tmp_path: Path, text: str, flags: Flags, expected: tuple[bool, bool]
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text)

    rules = read_settings([Path("my")], {}, flags, file).rules

    assert (rules.allow_override, rules.pinned) == expected


def test_flag_of_the_record_keeps_the_sizes_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("record: {path: a.jsonl, keep: 2}")

    settings = read_settings([Path("my")], {}, Flags(record=tmp_path / "b.jsonl"), file)

    assert settings.record == RecordSettings(path=tmp_path / "b.jsonl", keep=2)


@pytest.mark.parametrize(
    ("environment", "flags"), [({"SOFTSPEC_LOG_CONTENT": "1"}, Flags()), ({}, Flags(log_content=True))]
)
def test_content_is_logged_where_a_flag_or_a_variable_says_so(
    environment: dict[str, str], flags: Flags
) -> None:
    assert not read_settings([Path("my")], {}, Flags()).log.content
    assert read_settings([Path("my")], environment, flags).log.content


def test_key_that_is_missing_ends_the_start() -> None:
    flags = Flags(upstreams=("big=http://h/v1,model=m,api_key_env=NO_SUCH_KEY",))

    with pytest.raises(ConfigError, match="the environment variable NO_SUCH_KEY is not set"):
        read_settings([Path("my")], {}, flags)


def test_key_stays_where_it_is() -> None:
    flags = Flags(upstreams=("big=http://h/v1,model=m,api_key_env=KEY",))

    settings = read_settings([Path("my")], {"KEY": "sk-secret"}, flags)

    assert "sk-secret" not in repr(settings)
    assert "sk-secret" not in str(settings.to_environment())


def test_default_policy_answers_everything() -> None:
    settings = Settings.from_environment({"SOFTSPEC_ENSEMBLE": "/models/a"})

    assert settings.rules.default == Policy("answer")


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({}, "SOFTSPEC_ENSEMBLE is not set"),
        ({"SOFTSPEC_SETTINGS": "{"}, "SOFTSPEC_SETTINGS is not what 'softspec serve' wrote: unset it"),
        ({"SOFTSPEC_SETTINGS": "{}"}, "SOFTSPEC_SETTINGS is not what 'softspec serve' wrote: unset it"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_BASE_UNCHECKED": "yes"}, "'yes': expected 0 or 1"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_THRESHOLD": "high"}, "expected a number"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_ACTION": "abstain"}, "needs a threshold"),
        (
            {"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_ACTION": "route", "SOFTSPEC_POLICY_THRESHOLD": "0.3"},
            "no upstream",
        ),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_THRESHOLD": "0.3"}, "withholds nothing"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_MIN_TOKENS": "2.5"}, "MIN_TOKENS is '2.5': expected"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_PINNED": "1"}, "pinned but withholds nothing"),
        ({"SOFTSPEC_ENSEMBLE": "a", "SOFTSPEC_POLICY_PINNED": "yes"}, "PINNED is 'yes': expected 0 or 1"),
    ],
)
def test_wrong_settings_stop_the_server_at_start(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Settings.from_environment(environment)


def test_flag_of_the_keys_wins_over_the_file_and_is_carried(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("access: {keys: others.yaml, protect_ops: true}")
    keys = key_file(tmp_path, one={})

    settings = read_settings([Path("my")], {}, Flags(keys=keys, max_wait_s=5.0), file)

    assert Settings.from_environment(settings.to_environment()).access == AccessSettings(
        keys=keys, protect_ops=True, max_wait_s=5.0
    )


def test_flag_that_cannot_be_is_told_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"--max-wait: expected a number greater than 0 \(found -1.0\)"):
        read_settings([Path("my")], {}, Flags(max_wait_s=-1.0))
