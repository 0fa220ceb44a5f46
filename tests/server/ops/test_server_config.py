"""The server's YAML file: what it may say, and one line for everything that it may not."""

from pathlib import Path

import pytest

from softspec.errors import ConfigError
from softspec.server.access.settings import AccessSettings, RequestLimits
from softspec.server.observe.settings import LogSettings
from softspec.server.ops.server_config import RecordSettings, ServerConfig, read_server_config
from softspec.server.ops.settings import Flags, read_settings
from softspec.server.policy.fields import PolicyFields
from softspec.server.policy.policy import Policy
from softspec.server.policy.rules import PolicyRules
from softspec.server.rollout.settings import Shadow
from tests.support.documents import blocks
from tests.support.key_files import key_file

WHOLE = """
policy: {action: route, metric: max_epistemic, threshold: 0.5, min_tokens: 2, hold_tokens: 32, upstream: big,
         on_failure: error}
allow_override: true
policy_pinned: true
allowed_actions: [abstain, route]
allowed_upstreams: [big]
upstreams:
  big: {url: "https://example.com/v1", model: large, timeout_s: 90, max_retries: 0}
  small: {url: "http://localhost:9000", model: small}
record: {path: record.jsonl, max_bytes: 1000000, keep: 3}
access: {protect_ops: true, limits: {max_body_bytes: 2048}}
log: {requests: true, content: true}
aliases: {my: {demo: 90, demo-v2: 0.5}}
shadows: {demo-v2: {of: my, share: 0.1}}
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "server.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_settings([Path("my")], {}, Flags(), path)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_every_key_of_the_file_holds(tmp_path: Path) -> None:
    settings = read_settings([Path("my")], {}, Flags(), written(tmp_path, WHOLE))

    assert settings.rules == PolicyRules(
        Policy("route", "max_epistemic", 0.5, 2, 32, "big", "error"),
        ("big", "small"),
        allow_override=True,
        pinned=True,
        allowed_actions=("abstain", "route"),
        allowed_upstreams=("big",),
    )
    assert settings.upstreams["big"].timeout_s == 90
    assert settings.upstreams["small"].url == "http://localhost:9000/v1"
    assert settings.record == RecordSettings(path=tmp_path / "record.jsonl", max_bytes=1_000_000, keep=3)
    assert settings.access == AccessSettings(protect_ops=True, limits=RequestLimits(max_body_bytes=2048))
    assert settings.log == LogSettings(requests=True, content=True)
    assert settings.aliases == {"my": {"demo": 90, "demo-v2": 0.5}}
    assert settings.shadows == {"demo-v2": Shadow(of="my", share=0.1)}


def test_every_key_of_a_policy_and_of_the_file_is_tried_above(tmp_path: Path) -> None:
    config = read_server_config(written(tmp_path, WHOLE))

    assert config.model_fields_set == set(ServerConfig.model_fields)
    assert config.policy.model_fields_set == set(PolicyFields.model_fields)


def test_record_may_be_a_path_alone_and_is_relative_to_the_file(tmp_path: Path) -> None:
    config = read_server_config(written(tmp_path, "record: kept.jsonl\n"))

    assert config.record == RecordSettings(path=tmp_path / "kept.jsonl")


def test_key_file_is_relative_to_the_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o600)
    text = "upstreams: {big: {url: 'http://h/v1', model: m, api_key_file: key}}"

    settings = read_settings([Path("my")], {}, Flags(), written(tmp_path, text))

    assert settings.upstreams["big"].api_key_file == str(key)
    assert "secret" not in "".join(settings.to_environment().values())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "",
            "server.yaml: found nothing, expected keys such as 'policy: {action: abstain, threshold: 0.35}'",
        ),
        ("# only a comment\n", "found nothing, expected keys"),
        ("- policy\n", "found a list, expected keys"),
        ("policy", "found text, expected keys"),
        ("policy: {action: abstain", "not YAML as expected: line 1: "),
        ("policy:\n\taction: abstain\n", "not YAML as expected: line 2: "),
        ("record: a\nrecord: b\n", "not YAML as expected: line 2: the key 'record' is there twice; keep one"),
        ("policy: {threshold: 1, threshold: 2}", "line 1: the key 'threshold' is there twice"),
        ("policy: &p {action: answer}\nrecord: *p\n", "an anchor, alias or tag; write the value itself"),
        ("record: !!python/object:os.system a\n", "an anchor, alias or tag"),
        (b"record: \xff\n", "not YAML as expected"),
        ("polcy: {}", "polcy: unknown key; did you mean 'policy'?"),
        ("policy: {treshold: 0.5}", "policy.treshold: unknown key; did you mean 'threshold'?"),
        ("policy: {hold-tokens: 5}", "policy.hold-tokens: unknown key; did you mean 'hold_tokens'?"),
        ("port: 8000", "port: unknown key; expected one of policy, allow_override, "),
        ("record: {path: a, max-bytes: 5}", "record.max-bytes: unknown key; did you mean 'max_bytes'?"),
        (
            "upstreams: {big: {url: 'http://h', model: m, retries: 1}}",
            "upstreams.big.retries: unknown key; did you mean 'max_retries'?",
        ),
        ("policy: abstain", 'policy: expected an object (found "abstain")'),
        (
            "policy: {action: guess}",
            "policy.action: expected 'answer', 'abstain' or 'route' (found \"guess\")",
        ),
        ("policy: {threshold: '0.5'}", 'policy.threshold: expected a number or an object (found "0.5")'),
        ("policy: {threshold: high}", 'policy.threshold: expected a number or an object (found "high")'),
        ("policy: {threshold: .nan, action: abstain}", "policy threshold is nan: expected a finite number"),
        ("policy: {min_tokens: 2.5}", "policy.min_tokens: expected a whole number (found 2.5)"),
        ("policy: {min_tokens: true}", "policy.min_tokens: expected a whole number (found true)"),
        ("policy: {action: abstain}", "server.yaml: policy action 'abstain' needs a threshold"),
        ("policy: {threshold: 0.5}", "threshold given for action 'answer', which withholds nothing"),
        ("policy: {action: abstain, threshold: 1, upstream: a}", "upstream given for action 'abstain'"),
        (
            "policy: {action: route, threshold: 1}",
            "no upstream is configured; start the server with --upstream",
        ),
        (
            "policy: {action: abstain, threshold: {target_error: 5}}",
            "expected a number less than 1 (found 5)",
        ),
        ("allow_override: 'false'", 'allow_override: expected true or false (found "false")'),
        ("allow_override: 0", "allow_override: expected true or false (found 0)"),
        ("allowed_actions: abstain", 'allowed_actions: expected a list (found "abstain")'),
        ("allowed_actions: [drop]", "expected 'answer', 'abstain' or 'route' (found \"drop\")"),
        ("allowed_actions: [abstain]", "action 'answer' is not allowed: expected one of abstain"),
        ("allowed_upstreams: [big]", "allowed_upstreams names 'big': there is none"),
        ("policy_pinned: true", "pinned but withholds nothing"),
        ("upstreams: [a]", 'upstreams: expected an object (found ["a"])'),
        ("upstreams: {big: null}", "upstream 'big'"),
        ("upstreams: {big: {model: m}}", "upstream 'big': url: missing"),
        ("upstreams: {'b g': {url: 'http://h', model: m}}", "an upstream is named 'b g'"),
        ("upstreams: {1: {url: 'http://h', model: m}}", "a key that is no text; put it in quotes"),
        ("upstreams: {big: {url: '${URL}', model: m}}", "url must begin with http"),
        ("record: [a]", "record: expected an object"),
        ("aliases: {my: demo}", 'aliases.my: expected an object (found "demo")'),
        ("aliases: {my: {demo: '90'}}", 'aliases.my.demo: expected a number (found "90")'),
        ("aliases: {my: {demo: 0}}", "aliases.my: expected ensembles with weights, at least one"),
        ("aliases: {a b: {demo: 1}}", "aliases: an alias is named 'a b': expected up to 64 letters"),
        ("shadows: {new: {of: my}}", "shadows.new.share: missing"),
        ("shadows: {new: {of: my, shares: 1}}", "shadows.new.shares: unknown key; did you mean 'share'?"),
        (
            "shadows: {new: {of: my, share: 10}}",
            "shadows.new.share: expected a number of at most 1 (found 10)",
        ),
        ("access: {key: k}", "access.key: unknown key; did you mean 'keys'?"),
        (
            "access: {limits: {max_body: 1}}",
            "access.limits.max_body: unknown key; did you mean 'max_body_bytes'?",
        ),
        ("access: {limits: 5}", "access.limits: expected an object (found 5)"),
        ("access: keys.yaml", 'access: expected an object (found "keys.yaml")'),
        ("access: {keys: none.yaml}", "none.yaml': No such file or directory"),
        ("log: {contents: true}", "log.contents: unknown key; did you mean 'content'?"),
        ("log: {content: yes please}", 'log.content: expected true or false (found "yes please")'),
        ("log: {requests: false, content: true}", "requests are not logged, so their content cannot be"),
        ("record: {path: a, keep: -1}", "record.keep: expected a number of at least 0 (found -1)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    message = refusal(written(tmp_path, text))

    assert complaint in message


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml").endswith(
        "none.yaml': No such file or directory; expected a YAML file"
    )


def test_folder_is_no_file(tmp_path: Path) -> None:
    assert "expected a YAML file" in refusal(tmp_path)


def test_nothing_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "elsewhere")

    config = read_server_config(written(tmp_path, "record: $NAME.jsonl\n"))

    assert config.record is not None
    assert config.record.path.name == "$NAME.jsonl"


@pytest.mark.parametrize("place", ["{big: sk-secret}", "{big: {url: 'http://u:sk-secret@h/v1', model: m}}"])
def test_what_may_be_a_key_is_not_repeated(tmp_path: Path, place: str) -> None:
    assert "sk-secret" not in refusal(written(tmp_path, f"upstreams: {place}"))


def test_key_in_the_file_is_refused_with_the_place_where_it_belongs(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, "upstreams: {big: {url: 'http://h', model: m, api_key: sk-secret}}"))

    assert "api_key_env" in message
    assert "sk-secret" not in message


def test_example_of_the_document_is_understood(tmp_path: Path) -> None:
    """It names a variable for the key and a folder for the record, as a reader would have them."""
    example = next(
        block for block in blocks() if block.document == "server/README.md" and block.language == "yaml"
    )
    config = read_server_config(written(tmp_path, example.text))
    variables = {
        fields["api_key_env"]: "secret" for fields in config.upstreams.values() if "api_key_env" in fields
    }

    keys = key_file(tmp_path, one={})
    settings = read_settings([Path("my")], variables, Flags(), tmp_path / "server.yaml")

    assert settings.rules.default.action == "route"
    assert settings.access.keys == keys
    assert set(ServerConfig.model_fields) - config.model_fields_set <= {"policy_pinned"}
