"""The key file: what it may say, and one line for everything that it may not."""

import hashlib
from pathlib import Path

import pytest

from softspec.errors import ConfigError
from softspec.server.access.key_ring import LOOK_EVERY_S, KeyRing
from softspec.server.access.keys import Key, key_hash, read_key_file
from softspec.server.policy.policy import Policy
from tests.support.documents import blocks
from tests.support.key_files import key_file, secret

HASH = "sha256:" + "0" * 64


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


def key(**fields: object) -> Key:
    return Key.model_validate({"hash": HASH, **fields})


def test_hash_is_the_one_that_sha256sum_prints() -> None:
    assert key_hash("sk-a") == "sha256:" + hashlib.sha256(b"sk-a").hexdigest()


@pytest.mark.parametrize(
    ("models", "allowed", "refused"),
    [
        (None, ["my", "my/member-0", "base"], []),
        (["my"], ["my"], ["my/member-0", "base", "my2"]),
        (["my/*"], ["my/member-0"], ["my"]),
        (["my*"], ["my", "my2", "my/member-0"], ["base"]),
        ([], [], ["my", "base", ""]),
    ],
)
def test_models_are_patterns_and_an_ensemble_is_not_its_members(
    models: list[str] | None, allowed: list[str], refused: list[str]
) -> None:
    assert all(map(key(models=models).may_ask, allowed))
    assert not any(map(key(models=models).may_ask, refused))


def test_answer_where_an_upstream_fails_is_an_answer() -> None:
    routing = Policy("route", "max_epistemic", 0.5, on_failure="answer")

    assert not key(actions=["route"]).may_follow(routing)
    assert key(actions=["route", "answer"]).may_follow(routing)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "found nothing, expected keys such as 'keys: {NAME: {hash: 'sha256:...'}}'"),
        ("kyes: {}", "kyes: unknown key; did you mean 'keys'?"),
        ("keys:", "keys: missing: expected names with hashes"),
        (f"keys: {{'a b': {{hash: '{HASH}'}}}}", "a key is named 'a b': expected up to 64 letters"),
        (f"keys: {{a: {{hash: '{HASH}', model: [m]}}}}", "keys.a.model: unknown key; did you mean 'models'?"),
        (f"keys: {{a: {{hash: '{HASH}', models: m}}}}", 'keys.a.models: expected a list (found "m")'),
        (
            f"keys: {{a: {{hash: '{HASH}', requests_per_minute: 0}}}}",
            "keys.a.requests_per_minute: expected a number of at least 1 (found 0)",
        ),
        (
            f"keys: {{a: {{hash: '{HASH}', actions: [drop]}}}}",
            "'answer', 'abstain' or 'route' (found \"drop\")",
        ),
        (f"keys: {{a: {{hash: '{HASH}', admin: true, models: [m]}}}}", "may do everything: remove models"),
        (f"keys: {{a: {{hash: '{HASH}'}}, b: {{hash: '{HASH}'}}}}", "keys 'a' and 'b' have one hash"),
        ("keys: {a: {}}", "keys.a.hash: expected 'sha256:' and 64 hexadecimal digits"),
        ("keys: {a: sk-secret}", "keys.a.hash: expected 'sha256:' and 64"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_key_file(written(tmp_path, text))

    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["keys: {a: sk-secret}", "keys: {a: {hash: sk-secret}}"])
def test_key_that_was_written_in_place_of_its_hash_is_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_key_file(written(tmp_path, text))

    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
    ("mode", "is_refused"), [(0o644, True), (0o602, True), (0o640, False), (0o400, False)]
)
def test_file_that_everybody_may_read_or_write_is_refused(
    tmp_path: Path, mode: int, is_refused: bool
) -> None:
    path = written(tmp_path, f"keys: {{a: {{hash: '{HASH}'}}}}", mode)

    if is_refused:
        with pytest.raises(ConfigError, match="by everybody: run chmod 600 on it"):
            read_key_file(path)
    else:
        assert set(read_key_file(path)) == {"a"}


def test_example_of_the_document_is_understood(tmp_path: Path) -> None:
    [example] = [
        block.text for block in blocks() if block.language == "yaml" and "hash: sha256" in block.text
    ]

    [(name, found)] = read_key_file(written(tmp_path, example)).items()

    assert (name, found.may_ask("my"), found.may_ask("my/member-0")) == ("my-app", True, False)


# While a server runs


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def names(ring: KeyRing, *candidates: str) -> set[str]:
    """Those of these names whose keys are known now."""
    return {name for name in candidates if ring.find(secret(name)) is not None}


def test_keys_of_a_changed_file_hold_within_a_second(tmp_path: Path) -> None:
    clock = Clock()
    ring = KeyRing(key_file(tmp_path, old={}), clock)
    key_file(tmp_path, new={"requests_per_minute": 3})

    clock.seconds += LOOK_EVERY_S / 2
    before = names(ring, "old", "new")
    clock.seconds += LOOK_EVERY_S / 2
    after = names(ring, "old", "new")

    assert (before, after) == ({"old"}, {"new"})
    found = ring.find(secret("new"))
    assert found is not None
    assert found[1].requests_per_minute == 3


@pytest.mark.parametrize("becomes", ["keys: {", "keys: {a: {hash: short}}", None])
def test_file_that_has_become_wrong_leaves_the_keys_as_they_were(
    tmp_path: Path, becomes: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    path = key_file(tmp_path, old={})
    ring = KeyRing(path, clock)
    path.unlink() if becomes is None else path.write_text(becomes)

    for _ in range(3):
        clock.seconds += LOOK_EVERY_S
        assert names(ring, "old") == {"old"}

    [line] = caplog.messages
    assert line.startswith("the API keys stay as they were: ")
    assert str(path) in line


def test_key_that_was_removed_is_not_known_any_more(tmp_path: Path) -> None:
    clock = Clock()
    ring = KeyRing(key_file(tmp_path, one={}, other={}), clock)

    key_file(tmp_path, other={})
    clock.seconds += LOOK_EVERY_S

    assert names(ring, "one", "other") == {"other"}


def test_name_of_a_key_and_its_hash_are_no_key(tmp_path: Path) -> None:
    ring = KeyRing(key_file(tmp_path, one={}))

    assert [ring.find(text) for text in ("", "one", key_hash(secret("one")), secret("one ") + "é")] == [
        None
    ] * 4
