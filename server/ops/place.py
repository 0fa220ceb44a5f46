"""Where a server is found, and a command that asks it something.

In: what vLLM's command line says of the address. Out: a URL, and a line to be pasted into a shell.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from softspec.server.upstream.loop import EVERYWHERE


@dataclass(frozen=True)
class Place:
    """The address of a server; `socket` is the path of one that is no port. `has_chat` if its base has a template."""

    host: str | None
    port: int
    socket: str | None = None
    has_tls: bool = False
    needs_key: bool = False
    has_chat: bool = True

    @property
    def url(self) -> str:
        """Where this machine finds it."""
        scheme = "https" if self.has_tls else "http"
        if self.socket:
            return f"{scheme}://localhost"
        host = "localhost" if self.host is None or self.host in EVERYWHERE else self.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def __str__(self) -> str:
        return f"the socket {self.socket}" if self.socket else self.url

    def question(self, model: str) -> str:
        """A command that asks a model something; a key is expected in $API_KEY."""
        if self.has_chat:
            return self._curl(
                "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
            )
        return self._curl("/v1/completions", {"model": model, "prompt": "Hello!"})

    def _curl(self, path: str, body: Mapping[str, Any]) -> str:
        words = ["curl", *(("--unix-socket", self.socket) if self.socket else ()), f"{self.url}{path}"]
        key = ' -H "Authorization: Bearer $API_KEY"' if self.needs_key else ""
        rest = ["-H", "Content-Type: application/json", "-d", json.dumps({**body, "max_tokens": 32})]
        return f"{shlex.join(words)}{key} {shlex.join(rest)}"
