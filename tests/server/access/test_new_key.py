"""`softspec key new`: a key that is shown once, and a file that keeps what was in it."""

import stat
from pathlib import Path

import pytest

from softspec.app.cli.main import main
from softspec.errors import ConfigError
from softspec.server.access.keys import key_hash, read_key_file
from softspec.server.access.new_key import PREFIX, new_key
from tests.support.key_files import key_file


def test_key_is_printed_alone_and_its_hash_is_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.yaml"

    code = main(["key", "new", "my-app", "--keys", str(path)])

    printed = capsys.readouterr()
    assert code == 0
    assert printed.out.startswith(PREFIX)
    key = printed.out.removesuffix("\n")
    assert read_key_file(path)["my-app"].hash == key_hash(key)
    assert key not in path.read_text() + printed.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_admins_keys_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"

    for name, flags in {"one": [], "operator": ["--admin"], "two": []}.items():
        assert main(["key", "new", name, "--keys", str(path), *flags]) == 0

    assert {name: key.admin for name, key in read_key_file(path).items()} == {
        "one": False,
        "operator": True,
        "two": False,
    }


def test_keys_have_256_random_bits(tmp_path: Path) -> None:
    keys = [new_key(tmp_path / "keys.yaml", f"k{number}") for number in range(20)]

    assert len(set(keys)) == 20
    assert {len(key.removeprefix(PREFIX)) for key in keys} == {43}  # 32 bytes in base64


@pytest.mark.parametrize(
    "text",
    [
        "keys:\n  one:\n    hash: {hash}\n    models: [my]\n",
        "# of ours\nkeys:   # all\n\n    # the first\n    one:\n        hash: {hash}   # once",
        "keys:\n  one: {{hash: '{hash}', requests_per_minute: 3}}\n",
    ],
)
def test_what_was_in_the_file_stays_letter_by_letter(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.yaml"
    before = text.format(hash=key_hash("sk-one"))
    path.write_text(before)
    path.chmod(0o640)
    known = read_key_file(path)

    new_key(path, "two")

    assert path.read_text().startswith(before)
    assert {name: key for name, key in read_key_file(path).items() if name != "two"} == known
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["keys.yaml"]


def test_names_that_yaml_takes_for_something_else_are_names(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"

    for name in ("1", "true", "null", "a.b"):
        new_key(path, name)

    assert list(read_key_file(path)) == ["1", "true", "null", "a.b"]


@pytest.mark.parametrize(
    ("text", "name", "complaint"),
    [
        ("keys: {{one: {{hash: '{hash}'}}}}\n", "two", "does not end with the entries of 'keys'"),
        ("keys:\n  one:\n    hash: '{hash}'\n", "one", "has a key 'one' already: choose another name"),
        ("keys:\n  one:\n    hash: '{hash}'\n", "t w o", "a key is named 't w o'"),
        ("keys:\n  one:\n    hash: short\n", "two", "64 hexadecimal digits"),
    ],
)
def test_file_that_cannot_be_continued_is_left_alone(
    tmp_path: Path, text: str, name: str, complaint: str
) -> None:
    path = tmp_path / "keys.yaml"
    before = text.format(hash=key_hash("sk-one"))
    path.write_text(before)
    path.chmod(0o600)

    with pytest.raises(ConfigError, match=complaint):
        new_key(path, name)

    assert path.read_text() == before


def test_second_writer_is_told_of_the_first(tmp_path: Path) -> None:
    path = key_file(tmp_path, one={})
    (tmp_path / ".keys.yaml.new").touch()

    with pytest.raises(
        ConfigError, match="another 'softspec key new' is writing; remove it if that is not so"
    ):
        new_key(path, "two")


def test_folder_that_is_not_there_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["key", "new", "one", "--keys", str(tmp_path / "none" / "keys.yaml")])

    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert "cannot write the key file" in printed.err
