"""The routes of the page: plain files, served as they are, that load nothing from another host.

In: a browser. Out: `GET /`, and the files of `playground/` that it asks for, read once, when the server starts. Knows
FastAPI; everything else the page does is asked of the server's other routes by the browser.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response

FOLDER = Path(__file__).parent / "playground"
INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every file: only this server's scripts run, and only this server is asked. A copy is asked about before it is
used, so that a server that was replaced has no page of the one before."""


@dataclass(frozen=True)
class File:
    """A file as it is sent; the tag names its content."""

    content: bytes
    media_type: str
    tag: str


def add_page_routes(app: FastAPI) -> None:
    """Add the page and its files."""
    app.state.softspec_page = read_files()
    app.add_api_route("/", page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/playground/{file}", page_file, methods=["GET"], include_in_schema=False)


def read_files() -> dict[str, File]:
    """Every file of the page by its name."""
    return {path.name: _read(path) for path in sorted(FOLDER.iterdir())}


async def page(raw_request: Request) -> Response:
    """The page: ask, and see which token, field or option the members differ on."""
    return _sent(raw_request, INDEX)


async def page_file(file: str, raw_request: Request) -> Response:
    """What the page loads: its style and its modules."""
    return _sent(raw_request, file)


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _sent(request: Request, name: str) -> Response:
    file: File | None = request.app.state.softspec_page.get(name)
    if file is None:
        raise HTTPException(404, f"the page has no file '{name}'")
    headers = {**HEADERS, "ETag": file.tag}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
