"""One request to an ASGI app, message by message: a client that reads while the app still writes, and may leave.

In: an app, a path, headers and a body. Out: the messages as they come.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any


class Visit:
    """A request that is being answered."""

    def __init__(self, body: bytes) -> None:
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._to_app.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.task: asyncio.Task[None]

    async def next(self) -> dict[str, Any]:
        """The next message of the answer."""
        return await self._from_app.get()

    async def status(self) -> int:
        """The status of the answer, which has begun."""
        return int((await self.next())["status"])

    def leave(self) -> None:
        """Go away, as a client that closes its connection."""
        self._to_app.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> dict[str, Any]:
        return await self._to_app.get()

    async def send(self, message: Any) -> None:
        self._from_app.put_nowait(dict(message))


@asynccontextmanager
async def visiting(
    app: Any, path: str, body: Mapping[str, Any], headers: Mapping[str, str] = {}
) -> AsyncIterator[Visit]:
    """A POST request with a body of JSON; when the block ends the app is done with it."""
    content = json.dumps(body).encode()
    told = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in told.items()],
        "client": ("client", 1),
        "server": ("server", 80),
    }
    visit = Visit(content)
    visit.task = asyncio.create_task(app(scope, visit.receive, visit.send))
    try:
        yield visit
    finally:
        visit.leave()
        await visit.task
