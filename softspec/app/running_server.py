"""A server that runs somewhere, asked over HTTP with the key of the environment.

In: its address, and OPENAI_API_KEY if it wants one. Out: what it answers, or one line that says why not.
"""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from softspec.errors import ConfigError

KEY = "OPENAI_API_KEY"
_LONGEST_S = 30


def ask(url: str, path: str, body: object = None) -> str:
    """The text of what a server answers at a path; a body makes it a POST.

    Args:
        url: `http://host:port`, with `/v1` behind it or without.
    Raises:
        ConfigError: the address cannot be, nobody is there, or the answer is an error.
    """
    request = urllib.request.Request(_root_of(url) + path)
    if key := os.environ.get(KEY):
        # Not to where an answer may send us on.
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=_LONGEST_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        raise ConfigError(f"{url}: {_said_in(error)}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"{url}{path} cannot be read: {reason}; is a server running there?") from error


def ask_json(url: str, path: str, body: object = None) -> Any:
    """The JSON of what a server answers at a path.

    Raises:
        ConfigError: see `ask`, or it is no JSON.
    """
    try:
        return json.loads(ask(url, path, body))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{url}{path} is no JSON: is that a softspec server?") from error


def _root_of(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise ConfigError(
            f"the server's URL is no address like http://localhost:8000; a key belongs into {KEY}"
        )
    return url.rstrip("/").removesuffix("/v1")


def _said_in(error: urllib.error.HTTPError) -> str:
    """The message of an error, without its envelope."""
    text = error.read().decode(errors="replace")
    try:
        said = str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = f"{error.code} {error.reason}"
    hint = f"; put the key into {KEY}" if error.code == 401 else ""
    return " ".join(said.split()) + hint
