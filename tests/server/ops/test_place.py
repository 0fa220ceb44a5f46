"""Where a server is found, as a line that a shell understands."""

import json
import shlex

import pytest

from softspec.server.ops.place import Place


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (Place(None, 8000), "http://localhost:8000"),
        (Place("0.0.0.0", 80), "http://localhost:80"),
        (Place("::", 80), "http://localhost:80"),
        (Place("192.0.2.1", 80, has_tls=True), "https://192.0.2.1:80"),
        (Place("2001:db8::1", 80), "http://[2001:db8::1]:80"),
        (Place(None, 8000, "/run/softspec"), "the socket /run/softspec"),
    ],
)
def test_address_is_one_that_this_machine_can_ask(place: Place, told: str) -> None:
    assert str(place) == told


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (Place(None, 8000), "/v1/chat/completions"),
        (Place(None, 8000, has_chat=False), "/v1/completions"),
        (Place(None, 8000, "/run/a folder/socket"), "/v1/chat/completions"),
    ],
)
def test_question_is_for_the_model_whatever_it_is_called(place: Place, path: str) -> None:
    words = shlex.split(place.question('it\'s "mine"'))

    assert words[0] == "curl"
    assert f"{place.url}{path}" in words
    assert json.loads(words[-1])["model"] == 'it\'s "mine"'
    assert ("--unix-socket" in words) is (place.socket is not None)
    assert "Authorization" not in " ".join(words)


def test_key_is_expanded_by_the_shell_and_written_nowhere() -> None:
    line = Place(None, 8000, needs_key=True).question("law")

    assert '-H "Authorization: Bearer $API_KEY"' in line
